/* Defines the Python module: parses arguments, checks sizes, releases the interpreter's lock and calls a function.
 *
 * Everything here is written for x86-64 with AVX2, FMA and F16C (any processor since 2013), and for compilers that accept
 * such targets per function, GCC and Clang. Elsewhere the module can be imported, but supported() is false. The rest of
 * the package then computes the same with numpy and torch, more slowly; that code also defines what is correct here, bit
 * for bit.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_VECTORS 1
#include "decode.h"
#include "encode.h"
#include "errors.h"
#include "leaves.h"
#include "fourbit.h"
#include "products.h"
#else
#define HAVE_VECTORS 0
#endif

static PyObject *supported(PyObject *self, PyObject *none)
{
#if HAVE_VECTORS
    __builtin_cpu_init();
    return PyBool_FromLong(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c"));
#else
    Py_RETURN_FALSE;
#endif
}

#if HAVE_VECTORS

enum { MOST_BUFFERS = 6 };

/* The buffers of one call, each checked to be as long as the call takes it to be. */
typedef struct {
    Py_buffer views[MOST_BUFFERS];
    int count;
} Buffers;

static void release(Buffers *buffers)
{
    while (buffers->count)
        PyBuffer_Release(&buffers->views[--buffers->count]);
}

/* Returns the memory of a contiguous array of exactly ``bytes`` bytes; NULL, with a Python error, for any other. */
static void *memory(Buffers *buffers, PyObject *array, Py_ssize_t bytes, int writable)
{
    Py_buffer *view = &buffers->views[buffers->count];
    if (PyObject_GetBuffer(array, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE))
        return NULL;
    buffers->count++;
    if (view->len != bytes) {
        PyErr_Format(PyExc_ValueError, "an array of %zd bytes, where %zd belong", view->len, bytes);
        return NULL;
    }
    return view->buf ? view->buf : (void *)buffers; /* for no bytes, anything but NULL will do */
}

static int source_type(const char *name, Source *source)
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

static int block_size_fits(Py_ssize_t size)
{
    if (size <= 0 || size % 32)
        return PyErr_Format(PyExc_ValueError, "blocks of %zd elements, not of a multiple of 32", size), 0;
    return 1;
}

static PyObject *int8_rows(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t rows, columns;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values;
    void *codes, *absmax;
    int finite;
    if (!PyArg_ParseTuple(args, "sOnnOO", &dtype, &array, &rows, &columns, &code_array, &scale_array) ||
        !source_type(dtype, &source))
        return NULL;
    if ((values = memory(&buffers, array, rows * columns * width(source), 0)) &&
        (codes = memory(&buffers, code_array, rows * columns, 1)) &&
        (absmax = memory(&buffers, scale_array, rows * 4, 1))) {
        Py_BEGIN_ALLOW_THREADS
        finite = encode_int8(source, values, rows, columns, codes, absmax);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    release(&buffers);
    return result;
}

static PyObject *are_finite(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *array, *result = NULL;
    Py_ssize_t count;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values;
    int found;
    if (!PyArg_ParseTuple(args, "sOn", &dtype, &array, &count) || !source_type(dtype, &source))
        return NULL;
    if ((values = memory(&buffers, array, count * width(source), 0))) {
        Py_BEGIN_ALLOW_THREADS
        found = all_finite(source, values, count);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(found);
    }
    release(&buffers);
    return result;
}

static PyObject *four_bit_blocks(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *array, *bound_array, *order_array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t blocks, block_size;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values, *bounds, *order;
    void *codes, *absmax;
    int finite;
    if (!PyArg_ParseTuple(args, "sOnnOOOO", &dtype, &array, &blocks, &block_size, &bound_array, &order_array,
                          &code_array, &scale_array) ||
        !source_type(dtype, &source) || !block_size_fits(block_size))
        return NULL;
    if ((values = memory(&buffers, array, blocks * block_size * width(source), 0)) &&
        (bounds = memory(&buffers, bound_array, 15 * 4, 0)) && (order = memory(&buffers, order_array, 16, 0)) &&
        (codes = memory(&buffers, code_array, blocks * block_size / 2, 1)) &&
        (absmax = memory(&buffers, scale_array, blocks * 4, 1))) {
        Py_BEGIN_ALLOW_THREADS
        finite = encode_four_bit(source, values, blocks, block_size, bounds, order, codes, absmax);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    release(&buffers);
    return result;
}

static PyObject *four_bit_values(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *code_array, *book_array, *scale_array, *out_array, *result = NULL;
    Py_ssize_t blocks, size, item;
    unsigned threads;
    unsigned long long parallel;
    Buffers buffers = {.count = 0};
    Decoding all;
    if (!PyArg_ParseTuple(args, "snnOOOnOIK", &dtype, &blocks, &size, &code_array, &book_array, &scale_array, &item,
                          &out_array, &threads, &parallel) ||
        !source_type(dtype, &all.to) || !block_size_fits(size))
        return NULL;
    if (item != 4 && item != (Py_ssize_t)width(all.to))
        return PyErr_Format(PyExc_ValueError, "%s in %zd bytes", dtype, item);
    all.blocks = blocks, all.size = size, all.stored = item == 4 ? F32 : all.to;
    if ((all.codes = memory(&buffers, code_array, blocks * size / 2, 0)) &&
        (all.book = memory(&buffers, book_array, 16 * 4, 0)) &&
        (all.absmax = memory(&buffers, scale_array, blocks * 4, 0)) &&
        (all.out = memory(&buffers, out_array, blocks * size * item, 1))) {
        Py_BEGIN_ALLOW_THREADS
        decode_four_bit(&all, threads, (Parallel)(uintptr_t)parallel);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

static PyObject *nested_scales(PyObject *self, PyObject *args)
{
    PyObject *code_array, *book_array, *scale_array, *out_array, *result = NULL;
    Py_ssize_t count;
    Buffers buffers = {.count = 0};
    const void *codes, *book, *absmax;
    float offset;
    void *out;
    if (!PyArg_ParseTuple(args, "nOOOfO", &count, &code_array, &book_array, &scale_array, &offset, &out_array))
        return NULL;
    if ((codes = memory(&buffers, code_array, count, 0)) && (book = memory(&buffers, book_array, 256 * 4, 0)) &&
        (absmax = memory(&buffers, scale_array, (count + 255) / 256 * 4, 0)) &&
        (out = memory(&buffers, out_array, count * 4, 1))) {
        Py_BEGIN_ALLOW_THREADS
        decode_scales(codes, count, book, absmax, offset, out);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

static PyObject *four_bit_product(PyObject *self, PyObject *args)
{
    PyObject *input_array, *code_array, *book_array, *scale_array, *out_array, *result = NULL;
    Py_ssize_t rows, columns, out_features, size;
    unsigned threads;
    unsigned long long parallel;
    Buffers buffers = {.count = 0};
    FourBitProduct product;
    const float *inputs;
    if (!PyArg_ParseTuple(args, "nnnOOOOnOIK", &rows, &columns, &out_features, &input_array, &code_array, &book_array,
                          &scale_array, &size, &out_array, &threads, &parallel) ||
        !block_size_fits(size))
        return NULL;
    if (columns % size)
        return PyErr_Format(PyExc_ValueError, "%zd columns, not whole blocks of %zd", columns, size);
    product.rows = rows, product.columns = columns, product.out_features = out_features, product.size = size;
    if ((inputs = memory(&buffers, input_array, rows * columns * 4, 0)) &&
        (product.codes = memory(&buffers, code_array, out_features * columns / 2, 0)) &&
        (product.book = memory(&buffers, book_array, 16 * 4, 0)) &&
        (product.absmax = memory(&buffers, scale_array, out_features * (columns / size) * 4, 0)) &&
        (product.out = memory(&buffers, out_array, rows * out_features * 4, 1))) {
        float *arranged = malloc(rows * chunks_of(columns) * CHUNK * 4 + 1);
        product.input = arranged;
        if (arranged) {
            Py_BEGIN_ALLOW_THREADS
            arrange(inputs, rows, columns, arranged);
            multiply_four_bit(&product, threads, (Parallel)(uintptr_t)parallel);
            Py_END_ALLOW_THREADS
        }
        result = arranged ? Py_NewRef(Py_None) : PyErr_NoMemory();
        free(arranged);
    }
    release(&buffers);
    return result;
}

static PyObject *error_sums(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *array, *decoded_array, *result = NULL;
    Py_ssize_t rows, columns, first, step, count;
    Buffers buffers = {.count = 0};
    Source source;
    const char *values;
    const void *decoded;
    ErrorSums sums;
    if (!PyArg_ParseTuple(args, "sOnnnnnO", &dtype, &array, &rows, &columns, &first, &step, &count, &decoded_array) ||
        !source_type(dtype, &source))
        return NULL;
    if (first < 0 || step < 1 || count < 1 || first >= rows || count - 1 > (rows - 1 - first) / step)
        return PyErr_Format(PyExc_ValueError, "%zd rows from %zd on, every %zd, of %zd", count, first, step, rows);
    if ((values = memory(&buffers, array, rows * columns * width(source), 0)) &&
        (decoded = memory(&buffers, decoded_array, count * columns * 4, 0))) {
        size_t row_bytes = columns * width(source);
        Py_BEGIN_ALLOW_THREADS
        sums = decoded_errors(source, values + first * row_bytes, count, columns, step * row_bytes, decoded);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("ddd", sums.noise, sums.signal, sums.largest);
    }
    release(&buffers);
    return result;
}

static PyObject *int8_error_sums(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t rows, columns, step;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values, *codes, *scales;
    ErrorSums sums;
    if (!PyArg_ParseTuple(args, "sOnnnOO", &dtype, &array, &rows, &columns, &step, &code_array, &scale_array) ||
        !source_type(dtype, &source))
        return NULL;
    if (step < 1)
        return PyErr_Format(PyExc_ValueError, "every %zd rows", step);
    if ((values = memory(&buffers, array, rows * columns * width(source), 0)) &&
        (codes = memory(&buffers, code_array, rows * columns, 0)) &&
        (scales = memory(&buffers, scale_array, rows * 4, 0))) {
        Py_BEGIN_ALLOW_THREADS
        sums = int8_errors(source, values, rows, columns, step, codes, scales);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("ddd", sums.noise, sums.signal, sums.largest);
    }
    release(&buffers);
    return result;
}

/* Fills in the output of a product: scales, bias, and memory for results in the dtype ``to``. */
static int output_of(Buffers *buffers, PyObject *scale_array, PyObject *bias_array, PyObject *out_array,
                     Py_ssize_t rows, Output *output)
{
    Py_ssize_t features = output->out_features;
    output->bias = NULL;
    return (output->scales = memory(buffers, scale_array, features * 4, 0)) &&
           (bias_array == Py_None || (output->bias = memory(buffers, bias_array, features * 4, 0))) &&
           (output->out = memory(buffers, out_array, rows * features * width(output->to), 1));
}

static PyObject *int8_product(PyObject *self, PyObject *args)
{
    const char *dtype;
    PyObject *input_array, *row_array, *code_array, *scale_array, *bias_array, *out_array, *result = NULL;
    Py_ssize_t rows, columns, out_features;
    unsigned threads;
    unsigned long long parallel;
    Buffers buffers = {.count = 0};
    Product product;
    if (!PyArg_ParseTuple(args, "snnnOOOOfOOIK", &dtype, &rows, &columns, &out_features, &input_array, &row_array,
                          &code_array, &scale_array, &product.output.factor, &bias_array, &out_array, &threads,
                          &parallel) ||
        !source_type(dtype, &product.output.to))
        return NULL;
    product.rows = rows, product.columns = columns, product.stride = (columns + 15) / 16 * 16;
    product.output.out_features = out_features;
    if ((product.input = memory(&buffers, input_array, rows * product.stride * 2, 0)) &&
        (product.row_scales = memory(&buffers, row_array, rows * 4, 0)) &&
        (product.codes = memory(&buffers, code_array, out_features * columns, 0)) &&
        output_of(&buffers, scale_array, bias_array, out_array, rows, &product.output)) {
        Py_BEGIN_ALLOW_THREADS
        in_shares(multiply_features, &product, out_features, SHARE, threads, (Parallel)(uintptr_t)parallel);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

/* A call of a layer: inputs in the output's dtype, to be converted to the form that a product takes. */
typedef struct {
    Buffers buffers;
    Py_ssize_t rows, columns;
    const void *inputs; /* [rows, columns] */
    const int8_t *codes;
    Output output;
    float threshold; /* of int8_linear */
    unsigned threads;
    Parallel parallel;
} Layer;

/* Parses a layer's arguments; 0, with a Python error, if they do not fit. The caller releases the buffers in any case. */
static int layer_of(PyObject *args, Layer *layer)
{
    const char *dtype;
    PyObject *input_array, *code_array, *scale_array, *bias_array, *out_array;
    Py_ssize_t out_features;
    unsigned long long parallel;
    layer->buffers.count = 0;
    if (!PyArg_ParseTuple(args, "snnnOOOfOOIK|f", &dtype, &layer->rows, &layer->columns, &out_features, &input_array,
                          &code_array, &scale_array, &layer->output.factor, &bias_array, &out_array, &layer->threads,
                          &parallel, &layer->threshold) ||
        !source_type(dtype, &layer->output.to))
        return 0;
    layer->parallel = (Parallel)(uintptr_t)parallel, layer->output.out_features = out_features;
    Py_ssize_t input_bytes = layer->rows * layer->columns * width(layer->output.to);
    return (layer->inputs = memory(&layer->buffers, input_array, input_bytes, 0)) &&
           (layer->codes = memory(&layer->buffers, code_array, out_features * layer->columns, 0)) &&
           output_of(&layer->buffers, scale_array, bias_array, out_array, layer->rows, &layer->output);
}

static PyObject *int8_linear(PyObject *self, PyObject *args)
{
    PyObject *result = NULL;
    Layer layer;
    if (layer_of(args, &layer)) {
        size_t rows = layer.rows, columns = layer.columns, stride = (columns + 15) / 16 * 16;
        int16_t *codes = malloc(rows * stride * 2 + 1);
        float *absmax = malloc(rows * 4 + 1);
        int fine = 0;
        Product product = {codes, rows, stride, columns, absmax, layer.codes, layer.output};
        if (codes && absmax) {
            Py_BEGIN_ALLOW_THREADS
            fine = quantize_inputs(layer.output.to, layer.inputs, rows, columns, layer.threshold, codes, absmax);
            if (fine)
                in_shares(multiply_features, &product, layer.output.out_features, SHARE, layer.threads, layer.parallel);
            Py_END_ALLOW_THREADS
        }
        result = codes && absmax ? PyBool_FromLong(fine) : PyErr_NoMemory();
        free(codes);
        free(absmax);
    }
    release(&layer.buffers);
    return result;
}

static PyObject *float_linear(PyObject *self, PyObject *args)
{
    PyObject *result = NULL;
    Layer layer;
    if (layer_of(args, &layer)) {
        size_t rows = layer.rows, columns = layer.columns, stride = (columns + 7) / 8 * 8;
        float *wide = malloc(rows * stride * 4 + 1);
        FloatProduct product = {wide, rows, stride, columns, layer.codes, layer.output};
        if (wide) {
            Py_BEGIN_ALLOW_THREADS
            widen_inputs(layer.output.to, layer.inputs, rows, columns, wide);
            in_shares(multiply_float_features, &product, layer.output.out_features, SHARE, layer.threads,
                      layer.parallel);
            Py_END_ALLOW_THREADS
        }
        result = wide ? Py_NewRef(Py_None) : PyErr_NoMemory();
        free(wide);
    }
    release(&layer.buffers);
    return result;
}

static PyObject *leaf_digests(PyObject *self, PyObject *args)
{
    PyObject *array, *digest_array, *result = NULL;
    Py_ssize_t count, size;
    Buffers buffers = {.count = 0};
    const void *data;
    void *digests;
    if (!PyArg_ParseTuple(args, "OnnO", &array, &count, &size, &digest_array))
        return NULL;
    if (size < SHORTEST)
        return PyErr_Format(PyExc_ValueError, "leaves of %zd bytes, fewer than %d", size, SHORTEST);
    if ((data = memory(&buffers, array, count * size, 0)) && (digests = memory(&buffers, digest_array, count * 8, 1))) {
        Py_BEGIN_ALLOW_THREADS
        leaf_digests_of(data, count, size, digests);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Whether this build and this processor have the other functions."},
#if HAVE_VECTORS
    {"int8_rows", int8_rows, METH_VARARGS,
     "int8_rows(dtype, values, rows, columns, codes, absmax) -> whether all values were finite in float16"},
    {"finite", are_finite, METH_VARARGS, "finite(dtype, values, count) -> whether all are finite"},
    {"four_bit_blocks", four_bit_blocks, METH_VARARGS,
     "four_bit_blocks(dtype, values, blocks, block_size, bounds, order, codes, absmax) -> whether all were finite"},
    {"four_bit_values", four_bit_values, METH_VARARGS,
     "four_bit_values(dtype, blocks, block_size, codes, book, absmax, item, out, threads, parallel): item bytes of out"},
    {"nested_scales", nested_scales, METH_VARARGS, "nested_scales(count, codes, book, absmax, offset, out)"},
    {"four_bit_product", four_bit_product, METH_VARARGS,
     "four_bit_product(rows, columns, out_features, inputs, codes, book, absmax, block_size, out, threads, parallel)"},
    {"int8_error_sums", int8_error_sums, METH_VARARGS,
     "int8_error_sums(dtype, values, rows, columns, step, codes, scales) -> the same of every step-th row's codes"},
    {"int8_product", int8_product, METH_VARARGS,
     "int8_product(dtype, rows, columns, out_features, inputs, row_scales, codes, scales, factor, bias, out, threads, "
     "parallel)"},
    {"int8_linear", int8_linear, METH_VARARGS,
     "int8_linear(dtype, rows, columns, out_features, inputs, codes, scales, factor, bias, out, threads, parallel, "
     "threshold) -> whether all inputs were below the threshold"},
    {"float_linear", float_linear, METH_VARARGS,
     "float_linear(dtype, rows, columns, out_features, inputs, codes, scales, factor, bias, out, threads, parallel)"},
    {"error_sums", error_sums, METH_VARARGS,
     "error_sums(dtype, values, rows, columns, first, step, count, decoded) -> squares of differences, of values, largest"},
    {"leaf_digests", leaf_digests, METH_VARARGS, "leaf_digests(data, count, size, digests)"},
#endif
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "kernels", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_kernels(void)
{
    return PyModuleDef_Init(&definition);
}
