#include "kernels.h"
#if HAVE_VECTORS || HAVE_PACKED
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

/* Returns the memory of an array, which is of exactly ``bytes``; -1 stands for an error that is already set. */
static void *memory(Buffers *buffers, PyObject *array, Py_ssize_t bytes, int flags)
{
    static char nothing; /* for no bytes, anything but NULL will do */
    Py_buffer *view = &buffers->views[buffers->count];
    if (bytes < 0 || PyObject_GetBuffer(array, view, flags))
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
