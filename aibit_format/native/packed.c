/* Multiplies with packed weights and decodes them, by the functions for one of several kinds of processors.
 *
 * Whatever the activations, the sum of a product is that of inputs and decoded values, with float32's roundings. Inputs
 * are first rounded to 16 or to 8 bits, if that is asked for: to a multiple of the largest magnitude of 256
 * columns divided by 32767, or of 32 columns divided by 127.
 */
#include "kernels.h"
#if HAVE_PACKED
#include "packed_weight.h"
#include <stdlib.h>

enum {
    FEATURES = 16, /* that a thread takes at a time */
    TOGETHER = 8,  /* weights that are multiplied with the same inputs */
};

static const Target *const TARGETS[] = {
#if HAVE_VECTORS
    &packed_vnni, &packed_avx2,
#endif
#if defined(__aarch64__)
    &packed_dotprod,
#endif
    &packed_portable,
};

static const char *const KINDS[] = {[IN_F32] = "float32", [IN_I16] = "int16", [IN_I8] = "int8"};

FUNCTION(packed_targets)
{
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < sizeof TARGETS / sizeof *TARGETS; i++)
        if (TARGETS[i]->runs()) {
            PyObject *name = PyUnicode_FromString(TARGETS[i]->name);
            if (!name || PyList_Append(names, name))
                Py_CLEAR(names);
            Py_XDECREF(name);
        }
    return names;
}

/* Finds a target that this processor can run; NULL, with a Python error, if there is none of that name. */
static const Target *target_of(const char *name)
{
    for (size_t i = 0; i < sizeof TARGETS / sizeof *TARGETS; i++)
        if (!strcmp(name, TARGETS[i]->name) && TARGETS[i]->runs())
            return TARGETS[i];
    return PyErr_Format(PyExc_ValueError, "no target %s on this processor", name), NULL;
}

static int kind_of(const char *name, Activations *kind)
{
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(name, KINDS[i]))
            return *kind = (Activations)i, 1;
    return PyErr_Format(PyExc_ValueError, "no kind of activations: %s", name), 0;
}

static int rows_fit(Py_ssize_t first, Py_ssize_t count, Py_ssize_t rows)
{
    if (first < 0 || count < 0 || first > rows || count > rows - first)
        return PyErr_Format(PyExc_ValueError, "%zd rows from %zd on, of %zd", count, first, rows), 0;
    return 1;
}

/* Makes inputs of values [rows, columns]; 0, with a Python error, if there is no memory for them. */
static int inputs_of(Source source, const void *values, Py_ssize_t columns, const Target *target, Inputs *inputs)
{
    Py_ssize_t stretches = chunks(columns, BLOCK * STRETCH), rows = (Py_ssize_t)inputs->rows;
    size_t item = inputs->kind == IN_F32 ? 4 : inputs->kind == IN_I16 ? 2 : 1;
    inputs->stretches = (size_t)stretches;
    inputs->values = scratch(rows, stretches, BLOCK * STRETCH * item);
    inputs->steps = inputs->values ? scratch(rows, stretches, sizeof(InputSteps)) : NULL;
    if (!inputs->steps)
        return 0;
    for (Py_ssize_t row = 0; row < rows; row++)
        target->take(source, (const char *)values + row * columns * width(source), (size_t)columns, (size_t)row, inputs);
    return 1;
}

/* Products with the same inputs. Their features are counted one product after the other, each from a multiple of
 * FEATURES on, so that no share of a thread has features of two. */
typedef struct {
    void (*multiply)(const void *product, size_t first, size_t last);
    PackedProduct products[TOGETHER];
    size_t count, starts[TOGETHER + 1];
} Products;

static void multiply_shares(const void *task, size_t first, size_t last)
{
    const Products *products = task;
    for (size_t i = 0; i < products->count; i++) {
        const PackedProduct *product = &products->products[i];
        size_t start = products->starts[i], end = start + product->out_features;
        size_t from = first > start ? first : start, to = last < end ? last : end;
        if (from < to)
            products->multiply(product, from - start, to - start);
    }
}

/* Fills in the products of weights, biases and results, in tuples; 0, with a Python error, if they do not fit. */
static int products_of(PyObject *weights, PyObject *biases, PyObject *outs, Py_ssize_t rows, Source type,
                       Source bias_type, Buffers *buffers, Products *products)
{
    Py_ssize_t count = PyTuple_Size(weights);
    if (count < 1 || count > TOGETHER || PyTuple_Size(biases) != count || PyTuple_Size(outs) != count)
        return PyErr_Format(PyExc_ValueError, "%zd weights, %zd biases and %zd results; 1 to %d of each", count,
                            PyTuple_Size(biases), PyTuple_Size(outs), TOGETHER), 0;
    products->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        PackedProduct *product = &products->products[i];
        PyObject *bias = PyTuple_GetItem(biases, i);
        if (!(product->weight = weight_in(PyTuple_GetItem(weights, i))))
            return 0;
        const Weight *weight = product->weight, *first = products->products[0].weight;
        if (weight->columns != first->columns || (weight->form == VALUES) != (first->form == VALUES))
            return PyErr_Format(PyExc_ValueError, "weights of %zu and %zu columns, or of codes and of floats, together",
                                first->columns, weight->columns), 0;
        Py_ssize_t features = (Py_ssize_t)weight->rows;
        product->to = type, product->bias_from = bias_type, product->out_features = (size_t)features;
        if ((bias != Py_None && !(product->bias = readable(buffers, bias, features, 1, width(bias_type)))) ||
            !(product->out = writable(buffers, PyTuple_GetItem(outs, i), rows, features, width(type))))
            return 0;
        products->starts[i + 1] = products->starts[i] + (product->out_features + FEATURES - 1) / FEATURES * FEATURES;
    }
    return 1;
}

FUNCTION(packed_product)
{
    const char *target_name, *kind, *dtype, *bias_dtype;
    PyObject *weights, *input_array, *biases, *outs, *parallel, *result = NULL;
    Py_ssize_t rows, threads;
    Buffers buffers = {.count = 0};
    Team team;
    Inputs inputs = {0};
    Products products = {0};
    Source type, bias_type;
    const Target *target;
    const void *values;
    if (!PyArg_ParseTuple(args, "O!sssnOO!sO!nO", &PyTuple_Type, &weights, &target_name, &kind, &dtype, &rows,
                          &input_array, &PyTuple_Type, &biases, &bias_dtype, &PyTuple_Type, &outs, &threads, &parallel))
        return NULL;
    if ((target = target_of(target_name)) && kind_of(kind, &inputs.kind) && source_type(dtype, &type) &&
        source_type(bias_dtype, &bias_type) && team_of(threads, parallel, &team) &&
        products_of(weights, biases, outs, rows, type, bias_type, &buffers, &products)) {
        const Weight *weight = products.products[0].weight;
        Py_ssize_t columns = (Py_ssize_t)weight->columns;
        size_t features = products.starts[products.count];
        int empty = !rows || !features; /* nothing bounds the other of them */
        inputs.rows = (size_t)rows;
        inputs.kind = weight->form == VALUES ? IN_F32 : inputs.kind;
        products.multiply = target->multiply;
        for (size_t i = 0; i < products.count; i++)
            products.products[i].inputs = &inputs;
        if ((values = readable(&buffers, input_array, rows, columns, width(type))) &&
            (empty || inputs_of(type, values, columns, target, &inputs))) {
            Py_BEGIN_ALLOW_THREADS
            if (!empty)
                in_shares(multiply_shares, &products, features, FEATURES, &team);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
        free(inputs.values);
        free(inputs.steps);
    }
    release(&buffers);
    return result;
}

FUNCTION(packed_values)
{
    const char *target_name, *dtype;
    PyObject *weight, *out_array, *parallel, *result = NULL;
    Py_ssize_t first, count, threads;
    Buffers buffers = {.count = 0};
    Team team;
    PackedValues values = {0};
    const Target *target;
    if (!PyArg_ParseTuple(args, "OssnnOnO", &weight, &target_name, &dtype, &first, &count, &out_array, &threads,
                          &parallel) ||
        !(values.weight = weight_in(weight)))
        return NULL;
    size_t columns = values.weight->columns;
    if ((target = target_of(target_name)) && source_type(dtype, &values.to) && team_of(threads, parallel, &team) &&
        rows_fit(first, count, (Py_ssize_t)values.weight->rows) &&
        (values.out = writable(&buffers, out_array, count, (Py_ssize_t)columns, width(values.to)))) {
        values.first = (size_t)first;
        Py_BEGIN_ALLOW_THREADS
        if (columns)
            in_shares(target->decode, &values, (size_t)count, FEATURES, &team);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
