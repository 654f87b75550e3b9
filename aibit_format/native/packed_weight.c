/* Keeps packed weights for products: parsed and checked once, with the arrays that they are in. */
#include "packed_weight.h"
#if HAVE_PACKED
#include <stdlib.h>

/* Only this file makes capsules of this name. */
static const char capsule_name[] = "aibit_format.native.kernels.Weight";

typedef struct {
    Weight weight;
    Buffers buffers;
} Held;

typedef struct {
    const char *name;
    Py_ssize_t columns, bytes;
    int form, offset;
} Format;

#define FORMAT_ENTRY(name, columns, bytes, form, offset, unit) {#name, columns, bytes, form, offset},
static const Format TABLE[] = {FORMATS(FORMAT_ENTRY)};

static const struct {
    const char *name;
    int bytes;
} NUMBERS[] = {
    [NO_NUMBER] = {"none", 0},  [NUMBER_F16] = {"f16", 2},       [NUMBER_BF16] = {"bf16", 2},  [NUMBER_F32] = {"f32", 4},
    [NUMBER_E8M0] = {"f8_e8m0", 1}, [NUMBER_E4M3] = {"f8_e4m3", 1}, [NUMBER_U8] = {"u8", 1},
};

static int number_of(const char *name, Number *number)
{
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++)
        if (!strcmp(name, NUMBERS[i].name))
            return *number = (Number)i, 1;
    return PyErr_Format(PyExc_ValueError, "no dtype of scales: %s", name), 0;
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

/* Parses a weight [rows, columns] and holds its arrays; 0, with a Python error, if its parts do not fit together. */
static int fill_in(PyObject *args, Held *held)
{
    Buffers *buffers = &held->buffers;
    Weight *weight = &held->weight;
    const char *name, *scale_type, *zero_type;
    PyObject *codes, *scales, *zeros, *book, *factor;
    int middle;
    Py_ssize_t rows, columns, group, block_rows;
    const Format *format = TABLE;
    if (!PyArg_ParseTuple(args, "nnsOOOOOnnssppi", &rows, &columns, &name, &codes, &scales, &zeros, &book, &factor,
                          &group, &block_rows, &scale_type, &zero_type, &weight->zeros_are_biases, &weight->reciprocal,
                          &middle))
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
    weight->rows = (size_t)rows, weight->row_bytes = (size_t)row_bytes;
    weight->stretch_bytes = (size_t)(format->bytes * BLOCK * STRETCH / format->columns);
    int is_book = !strncmp(name, "book", 4);
    weight->halved = !strcmp(name, "e2m1"), weight->book = weight->factor = NULL;
    return (weight->codes = readable(buffers, codes, rows, row_bytes, 1)) &&
           (format->form <= BIASED || steps_of(buffers, scales, zeros, rows, group, block_rows, weight)) &&
           (factor == Py_None || (weight->factor = readable(buffers, factor, 1, 1, 4))) &&
           (!is_book || (weight->book = readable(buffers, book, (Py_ssize_t)1 << format->bytes, 1, 4)));
}

static void let_go(Held *held)
{
    release(&held->buffers);
    free(held);
}

static void end_of(PyObject *capsule)
{
    let_go(PyCapsule_GetPointer(capsule, capsule_name));
}

FUNCTION(packed_weight)
{
    Held *held = calloc(1, sizeof *held);
    PyObject *capsule = NULL;
    if (!held)
        return PyErr_NoMemory();
    if (!fill_in(args, held) || !(capsule = PyCapsule_New(held, capsule_name, end_of)))
        let_go(held);
    return capsule;
}

const Weight *weight_in(PyObject *capsule)
{
    if (!PyCapsule_IsValid(capsule, capsule_name))
        return PyErr_Format(PyExc_TypeError, "weight: %R, which packed_weight has not returned", capsule), NULL;
    return &((Held *)PyCapsule_GetPointer(capsule, capsule_name))->weight;
}

#endif
