/* Multiplies with packed weights and decodes them, by the functions for one of several kinds of processors.
 *
 * Whatever the activations, the sum of a product is that of inputs and decoded values, with float32's roundings. Inputs
 * are first rounded to 16 or to 8 bits, if that is asked for: to a multiple of the largest magnitude of 256
 * columns divided by 32767, or of 32 columns divided by 127.
 */
#include "kernels.h"
#if HAVE_PACKED
#include "packed.h"
#include <stdlib.h>

enum { FEATURES = 16 }; /* that a thread takes at a time */

static const Target *const TARGETS[] = {
#if HAVE_VECTORS
    &packed_vnni, &packed_avx2,
#endif
#if defined(__aarch64__)
    &packed_dotprod,
#endif
    &packed_portable,
};

typedef struct {
    const char *name;
    Py_ssize_t columns, bytes;
    int form, offset;
} Format;

#define FORMAT_ENTRY(name, columns, bytes, form, offset) {#name, columns, bytes, form, offset},
static const Format TABLE[] = {FORMATS(FORMAT_ENTRY)};

static const struct {
    const char *name;
    int bytes;
} NUMBERS[] = {
    [NO_NUMBER] = {"none", 0},  [NUMBER_F16] = {"f16", 2},       [NUMBER_BF16] = {"bf16", 2},  [NUMBER_F32] = {"f32", 4},
    [NUMBER_E8M0] = {"f8_e8m0", 1}, [NUMBER_E4M3] = {"f8_e4m3", 1}, [NUMBER_U8] = {"u8", 1},
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

static int number_of(const char *name, Number *number)
{
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++)
        if (!strcmp(name, NUMBERS[i].name))
            return *number = (Number)i, 1;
    return PyErr_Format(PyExc_ValueError, "no dtype of scales: %s", name), 0;
}

static int kind_of(const char *name, Activations *kind)
{
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(name, KINDS[i]))
            return *kind = (Activations)i, 1;
    return PyErr_Format(PyExc_ValueError, "no kind of activations: %s", name), 0;
}

static const void *numbers_in(Buffers *buffers, PyObject *array, Py_ssize_t grid, Py_ssize_t groups, Number type)
{
    return type == NO_NUMBER ? "" : readable(buffers, array, grid, groups, NUMBERS[type].bytes);
}

/* Fills in the numbers that lie aside of codes; 0, with a Python error, if they do not fit. */
static int steps_of(Buffers *buffers, PyObject *scales, PyObject *zeros, Py_ssize_t rows, Py_ssize_t group,
                    Py_ssize_t block_rows, Weight *weight)
{
    Py_ssize_t groups = group ? chunks((Py_ssize_t)weight->columns, group) : 1, grid;
    if (group < 0 || group % 16)
        return PyErr_Format(PyExc_ValueError, "groups of %zd columns, not of a multiple of 16", group), 0;
    if (block_rows < 1)
        return PyErr_Format(PyExc_ValueError, "blocks of %zd rows", block_rows), 0;
    grid = chunks(rows, block_rows);
    weight->group = (size_t)group, weight->block_rows = (size_t)block_rows, weight->groups = groups ? (size_t)groups : 1;
    weight->numbers = (size_t)(grid * groups); /* of which there is an array, unless they have no bytes */
    weight->scales = numbers_in(buffers, scales, grid, groups, weight->scale_type);
    weight->zeros = weight->scales ? numbers_in(buffers, zeros, grid, groups, weight->zero_type) : NULL;
    return weight->zeros != NULL;
}

/* Parses a weight [rows, columns]: (format, codes, scales, zeros, book, factor, group, block_rows, scale_type,
 * zero_type, zeros_are_biases, reciprocal, middle); 0, with a Python error, if its parts do not fit together. */
static int weight_of(Buffers *buffers, PyObject *parts, Py_ssize_t rows, Py_ssize_t columns, Weight *weight)
{
    const char *name, *scale_type, *zero_type;
    PyObject *codes, *scales, *zeros, *book, *factor;
    int middle;
    Py_ssize_t group, block_rows;
    const Format *format = TABLE;
    if (!PyArg_ParseTuple(parts, "sOOOOOnnssppi", &name, &codes, &scales, &zeros, &book, &factor, &group, &block_rows,
                          &scale_type, &zero_type, &weight->zeros_are_biases, &weight->reciprocal, &middle))
        return 0;
    while (format < TABLE + FORMAT_COUNT && strcmp(format->name, name))
        format++;
    if (format == TABLE + FORMAT_COUNT)
        return PyErr_Format(PyExc_ValueError, "no packed format: %s", name), 0;
    if (columns < 0 || (format->form <= BIASED && columns % format->columns))
        return PyErr_Format(PyExc_ValueError, "%zd columns, not whole blocks of %zd", columns, format->columns), 0;
    if (!number_of(scale_type, &weight->scale_type) || !number_of(zero_type, &weight->zero_type))
        return 0;
    weight->format = (int)(format - TABLE), weight->form = format->form, weight->columns = (size_t)columns;
    weight->biased = format->form == BIASED || (format->form > BIASED && weight->zero_type != NO_NUMBER);
    if (format->form == VALUES && weight->zero_type != NO_NUMBER)
        return PyErr_Format(PyExc_ValueError, "%s has no zeros", name), 0;
    if (middle < 0 || (middle && (format->form != GROUPS || format->offset)) || middle > 127)
        return PyErr_Format(PyExc_ValueError, "%s with a middle of %d", name, middle), 0;
    weight->offset = middle ? middle : format->offset;
    /* Rows begin at a byte. Whole parts are counted first, so that nothing is too large to be multiplied. */
    Py_ssize_t parts_of_row = columns / format->columns, rest = columns % format->columns, row_bytes;
    if (__builtin_mul_overflow(parts_of_row, format->bytes, &row_bytes) ||
        __builtin_add_overflow(row_bytes, chunks(rest * format->bytes, format->columns), &row_bytes))
        return PyErr_Format(PyExc_OverflowError, "%zd columns: no array is that large", columns), 0;
    weight->row_bytes = (size_t)row_bytes;
    weight->stretch_bytes = (size_t)(format->bytes * BLOCK * STRETCH / format->columns);
    int is_book = !strncmp(name, "book", 4);
    weight->halved = !strcmp(name, "e2m1"), weight->book = weight->factor = NULL;
    return (weight->codes = readable(buffers, codes, rows, row_bytes, 1)) &&
           (format->form <= BIASED || steps_of(buffers, scales, zeros, rows, group, block_rows, weight)) &&
           (factor == Py_None || (weight->factor = readable(buffers, factor, 1, 1, 4))) &&
           (!is_book || (weight->book = readable(buffers, book, (Py_ssize_t)1 << format->bytes, 1, 4)));
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
    inputs->scales = inputs->values ? scratch(rows, stretches, STRETCH * sizeof(float)) : NULL;
    inputs->sums = inputs->scales ? scratch(rows, stretches, 2 * STRETCH * sizeof(float)) : NULL;
    if (!inputs->sums)
        return 0;
    for (Py_ssize_t row = 0; row < rows; row++)
        target->take(source, (const char *)values + row * columns * width(source), (size_t)columns, (size_t)row, inputs);
    return 1;
}

FUNCTION(packed_product)
{
    PyObject *head = PyTuple_GetSlice(args, 0, 11), *parts = PyTuple_GetSlice(args, 11, PyTuple_Size(args));
    const char *target_name, *kind, *dtype;
    PyObject *input_array, *bias_array, *out_array, *parallel, *result = NULL;
    Py_ssize_t rows, columns, out_features, threads;
    Buffers buffers = {.count = 0};
    Team team;
    Weight weight;
    Inputs inputs = {0};
    PackedProduct product = {.weight = &weight, .inputs = &inputs};
    const Target *target;
    const void *values;
    if (head && parts &&
        PyArg_ParseTuple(head, "sssnnnOOOnO", &target_name, &kind, &dtype, &rows, &columns, &out_features, &input_array,
                         &bias_array, &out_array, &threads, &parallel) &&
        (target = target_of(target_name)) && kind_of(kind, &inputs.kind) && source_type(dtype, &product.to) &&
        team_of(threads, parallel, &team) && weight_of(&buffers, parts, out_features, columns, &weight) &&
        (values = readable(&buffers, input_array, rows, columns, width(product.to))) &&
        (bias_array == Py_None || (product.bias = readable(&buffers, bias_array, out_features, 1, 4))) &&
        (product.out = writable(&buffers, out_array, rows, out_features, width(product.to)))) {
        int empty = !rows || !out_features; /* nothing bounds the other of them */
        inputs.rows = (size_t)rows, product.out_features = (size_t)out_features;
        inputs.kind = weight.form == VALUES ? IN_F32 : inputs.kind;
        if (empty || inputs_of(product.to, values, columns, target, &inputs)) {
            Py_BEGIN_ALLOW_THREADS
            if (!empty)
                in_shares(target->multiply, &product, (size_t)out_features, FEATURES, &team);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
        free(inputs.values);
        free(inputs.scales);
        free(inputs.sums);
    }
    release(&buffers);
    Py_XDECREF(head);
    Py_XDECREF(parts);
    return result;
}

FUNCTION(packed_values)
{
    PyObject *head = PyTuple_GetSlice(args, 0, 9), *parts = PyTuple_GetSlice(args, 9, PyTuple_Size(args));
    const char *target_name, *dtype;
    PyObject *out_array, *parallel, *result = NULL;
    Py_ssize_t columns, out_features, first, count, threads;
    Buffers buffers = {.count = 0};
    Team team;
    Weight weight;
    PackedValues values = {.weight = &weight};
    const Target *target;
    if (head && parts &&
        PyArg_ParseTuple(head, "ssnnnnOnO", &target_name, &dtype, &columns, &out_features, &first, &count, &out_array,
                         &threads, &parallel) &&
        (target = target_of(target_name)) && source_type(dtype, &values.to) && team_of(threads, parallel, &team) &&
        rows_fit(first, count, out_features) && weight_of(&buffers, parts, out_features, columns, &weight) &&
        (values.out = writable(&buffers, out_array, count, columns, width(values.to)))) {
        values.first = (size_t)first;
        Py_BEGIN_ALLOW_THREADS
        if (columns)
            in_shares(target->decode, &values, (size_t)count, FEATURES, &team);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    Py_XDECREF(head);
    Py_XDECREF(parts);
    return result;
}

#endif
