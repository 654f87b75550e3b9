#include "kernels.h"
#if HAVE_VECTORS || HAVE_PACKED
#include "dlpack.h"
#include "sizes.h"
#include <stdlib.h>

/* Multiplies three sizes; -1, with a Python error, if one is negative or the product is larger than any memory. */
static Py_ssize_t bytes_of(Py_ssize_t rows, Py_ssize_t columns, size_t item)
{
    Py_ssize_t items, bytes;
    if (rows < 0 || columns < 0)
        return PyErr_Format(PyExc_ValueError, "%zd rows of %zd elements: sizes are not negative", rows, columns), -1;
    if (__builtin_mul_overflow(rows, columns, &items) || __builtin_mul_overflow(items, item, &bytes))
        return PyErr_Format(PyExc_OverflowError, "%zd rows of %zd elements of %zu bytes: no array is that large", rows,
                            columns, item), -1;
    return bytes;
}

/* Returns how many bytes a tensor has; -1, with a Python error, if it is not contiguous, or not in the memory of a CPU. */
static Py_ssize_t bytes_of_tensor(const DLTensor *tensor)
{
    int64_t items = 1;
    int lies_here = tensor->device_type == DL_CPU && tensor->lanes == 1 && tensor->bits % 8 == 0;
    for (int i = tensor->ndim - 1; lies_here && i >= 0; i--) {
        lies_here = !tensor->strides || tensor->shape[i] == 1 || tensor->strides[i] == items || !tensor->shape[i];
        items *= tensor->shape[i]; /* of memory that there is */
    }
    if (!lies_here)
        return PyErr_Format(PyExc_ValueError, "a tensor that is not contiguous in the memory of a CPU"), -1;
    return items * (tensor->bits / 8);
}

/* Fills in a view of an array; 0, with a Python error, if it has none. */
static int view_of(PyObject *array, Py_buffer *view, int flags)
{
    if (!PyCapsule_IsValid(array, "dltensor"))
        return !PyObject_GetBuffer(array, view, flags);
    const DLTensor *tensor = PyCapsule_GetPointer(array, "dltensor");
    Py_ssize_t bytes = bytes_of_tensor(tensor);
    return bytes >= 0 && !PyBuffer_FillInfo(view, array, (char *)tensor->data + tensor->byte_offset, bytes, 0, flags);
}

/* Returns the memory of an array, which is of exactly ``bytes``; -1 stands for an error that is already set. */
static void *memory(Buffers *buffers, PyObject *array, Py_ssize_t bytes, int flags)
{
    static char nothing; /* for no bytes, anything but NULL will do */
    Py_buffer *view = &buffers->views[buffers->count];
    if (bytes < 0 || !view_of(array, view, flags))
        return NULL;
    buffers->count++;
    if (view->len != bytes)
        return PyErr_Format(PyExc_ValueError, "an array of %zd bytes, where %zd belong", view->len, bytes), NULL;
    return bytes ? view->buf : &nothing;
}

const void *readable(Buffers *buffers, PyObject *array, Py_ssize_t rows, Py_ssize_t columns, size_t item)
{
    return memory(buffers, array, bytes_of(rows, columns, item), PyBUF_SIMPLE);
}

void *writable(Buffers *buffers, PyObject *array, Py_ssize_t rows, Py_ssize_t columns, size_t item)
{
    return memory(buffers, array, bytes_of(rows, columns, item), PyBUF_WRITABLE);
}

void release(Buffers *buffers)
{
    while (buffers->count)
        PyBuffer_Release(&buffers->views[--buffers->count]);
}

void *scratch(Py_ssize_t rows, Py_ssize_t columns, size_t item)
{
    Py_ssize_t bytes = bytes_of(rows, columns, item);
    if (bytes < 0)
        return NULL;
    void *memory = malloc(bytes ? bytes : 1);
    return memory ? memory : PyErr_NoMemory();
}

int source_type(const char *name, Source *source)
{
    if (!strcmp(name, "f16"))
        *source = F16;
    else if (!strcmp(name, "bf16"))
        *source = BF16;
    else if (!strcmp(name, "f32"))
        *source = F32;
    else
        return PyErr_Format(PyExc_ValueError, "no dtype of weights: %s", name), 0;
    return 1;
}

int block_size_fits(Py_ssize_t size)
{
    if (size <= 0 || size % 32)
        return PyErr_Format(PyExc_ValueError, "blocks of %zd elements, not of a multiple of 32", size), 0;
    return 1;
}

#endif
