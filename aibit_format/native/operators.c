/* Computes what models compute between products, on arrays from Python. */
#include "kernels.h"
#if HAVE_PACKED
#include "operators.h"
#include <stdlib.h>

enum { WORK = 1 << 14 }; /* multiplications for which a second thread is worth starting */

static const Operators *operators(void)
{
#if HAVE_VECTORS
    if (operators_avx2.runs())
        return &operators_avx2;
#endif
    return &operators_portable;
}

/* Runs a task in shares, by this thread alone if there is little to do. */
static void run(void (*function)(const void *, size_t, size_t), const void *task, size_t count, size_t share, size_t work,
                Team team)
{
    if (work < WORK)
        team.parallel = NULL;
    Py_BEGIN_ALLOW_THREADS
    in_shares(function, task, count, share, &team);
    Py_END_ALLOW_THREADS
}

/* Multiplies two sizes; -1, with a Python error, if one is negative or the product is too large. */
static Py_ssize_t times(Py_ssize_t a, Py_ssize_t b)
{
    Py_ssize_t product;
    if (a < 0 || b < 0)
        return PyErr_Format(PyExc_ValueError, "a size of %zd: sizes are not negative", a < 0 ? a : b), -1;
    if (__builtin_mul_overflow(a, b, &product))
        return PyErr_Format(PyExc_OverflowError, "%zd times %zd: no array is that large", a, b), -1;
    return product;
}

FUNCTION(rms_norm)
{
    const char *dtype, *weight_dtype;
    PyObject *values, *weight, *out, *parallel, *result = NULL;
    Py_ssize_t rows, columns, threads;
    Buffers buffers = {.count = 0};
    Normalization norm = {0};
    Team team;
    if (!PyArg_ParseTuple(args, "snnOOsOffpnO", &dtype, &rows, &columns, &values, &weight, &weight_dtype, &out,
                          &norm.epsilon, &norm.offset, &norm.rounds, &threads, &parallel))
        return NULL;
    if (source_type(dtype, &norm.type) && source_type(weight_dtype, &norm.weight_type) &&
        team_of(threads, parallel, &team) &&
        (norm.values = readable(&buffers, values, rows, columns, width(norm.type))) &&
        (weight == Py_None || (norm.weight = readable(&buffers, weight, columns, 1, width(norm.weight_type)))) &&
        (norm.out = writable(&buffers, out, rows, columns, width(norm.type)))) {
        norm.rows = (size_t)rows, norm.columns = (size_t)columns;
        if (columns)
            run(operators()->normalize, &norm, norm.rows, 1, norm.rows * norm.columns, team);
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

FUNCTION(rotary)
{
    const char *dtype;
    PyObject *values, *cosines, *sines, *out, *parallel, *result = NULL;
    Py_ssize_t batches, positions, heads, size, turned, angles, capacity, first, threads;
    Buffers buffers = {.count = 0};
    Rotation rotation = {0};
    Team team;
    if (!PyArg_ParseTuple(args, "snnnnnnnnOOOOnO", &dtype, &batches, &positions, &heads, &size, &turned, &angles, &capacity,
                          &first, &values, &cosines, &sines, &out, &threads, &parallel) ||
        !source_type(dtype, &rotation.type) || !team_of(threads, parallel, &team))
        return NULL;
    if (turned < 0 || turned > size || turned % 16 || (angles != 1 && angles != batches) || first < 0 || capacity < 0 ||
        first > capacity || positions > capacity - first)
        return PyErr_Format(PyExc_ValueError, "%zd of %zd elements, %zd angles, positions %zd and %zd more of %zd", turned,
                            size, angles, first, positions, capacity);
    size_t each = width(rotation.type);
    Py_ssize_t places = times(batches, positions), rows = places < 0 ? -1 : times(places, heads);
    Py_ssize_t lines = rows < 0 ? -1 : times(batches, heads), slots = lines < 0 ? -1 : times(lines, capacity);
    Py_ssize_t angle_rows = slots < 0 ? -1 : times(angles, positions);
    if (angle_rows >= 0 && (rotation.values = readable(&buffers, values, rows, size, each)) &&
        (cosines == Py_None || ((rotation.cosines = readable(&buffers, cosines, angle_rows, turned, each)) &&
                                (rotation.sines = readable(&buffers, sines, angle_rows, turned, each)))) &&
        (rotation.out = writable(&buffers, out, slots, size, each))) {
        rotation.batches = (size_t)batches, rotation.positions = (size_t)positions, rotation.heads = (size_t)heads;
        rotation.size = (size_t)size, rotation.turned = (size_t)turned, rotation.capacity = (size_t)capacity;
        rotation.first = (size_t)first, rotation.angles = (size_t)angles;
        run(operators()->rotate, &rotation, (size_t)rows, 16, (size_t)rows * rotation.size, team);
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

FUNCTION(attention)
{
    const char *dtype;
    PyObject *query, *key, *value, *out, *parallel, *result = NULL;
    Py_ssize_t batches, heads, group, queries, keys, capacity, size, value_size, window, threads;
    Buffers buffers = {.count = 0};
    Attention attention = {0};
    Team team;
    if (!PyArg_ParseTuple(args, "snnnnnnnnnffOOOOnO", &dtype, &batches, &heads, &group, &queries, &keys, &capacity, &size,
                          &value_size, &window, &attention.scale, &attention.cap, &query, &key, &value, &out, &threads,
                          &parallel) ||
        !source_type(dtype, &attention.type) || !team_of(threads, parallel, &team))
        return NULL;
    if (size < 8 || size % 8 || value_size < 8 || value_size % 8 || queries < 0 || keys < queries || keys > capacity ||
        window < 0)
        return PyErr_Format(PyExc_ValueError, "heads of %zd and %zd, %zd queries, %zd keys of %zd, a window of %zd", size,
                            value_size, queries, keys, capacity, window);
    size_t each = width(attention.type);
    Py_ssize_t pairs = times(batches, heads), slots = pairs < 0 ? -1 : times(pairs, capacity);
    Py_ssize_t each_pair = slots < 0 ? -1 : times(group, queries), rows = each_pair < 0 ? -1 : times(pairs, each_pair);
    Py_ssize_t row = 0, padded = 0;
    if (rows < 0 || __builtin_add_overflow(size, value_size, &row) || __builtin_mul_overflow(chunks(keys, 8), 8, &padded) ||
        __builtin_add_overflow(row, padded, &row))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_OverflowError, "%zd keys: no array is that large", keys);
    if ((attention.query = readable(&buffers, query, rows, size, each)) &&
        (attention.key = readable(&buffers, key, slots, size, each)) &&
        (attention.value = readable(&buffers, value, slots, value_size, each)) &&
        (attention.out = writable(&buffers, out, rows, value_size, each)) &&
        (attention.scratch = scratch(rows, row, sizeof(float)))) {
        attention.pairs = (size_t)pairs, attention.group = (size_t)group, attention.heads = (size_t)heads;
        attention.queries = (size_t)queries, attention.keys = (size_t)keys, attention.capacity = (size_t)capacity;
        attention.size = (size_t)size, attention.value_size = (size_t)value_size, attention.window = (size_t)window;
        attention.scratch_row = (size_t)row;
        if (rows)
            run(operators()->attend, &attention, attention.pairs, 1, (size_t)rows * attention.scratch_row, team);
        result = Py_NewRef(Py_None);
    }
    free(attention.scratch);
    release(&buffers);
    return result;
}

static const char *const ACTIVATIONS[] = {[SILU] = "silu", [GELU_TANH] = "gelu_tanh", [RELU] = "relu"};

FUNCTION(gated)
{
    const char *dtype, *name;
    PyObject *gate_array, *up, *out, *parallel, *result = NULL;
    Py_ssize_t count, threads;
    Buffers buffers = {.count = 0};
    Gate gate = {0};
    Team team;
    size_t i = 0, known = sizeof ACTIVATIONS / sizeof *ACTIVATIONS;
    if (!PyArg_ParseTuple(args, "ssnOOOnO", &dtype, &name, &count, &gate_array, &up, &out, &threads, &parallel) ||
        !source_type(dtype, &gate.type) || !team_of(threads, parallel, &team))
        return NULL;
    while (i < known && strcmp(ACTIVATIONS[i], name))
        i++;
    if (i == known)
        return PyErr_Format(PyExc_ValueError, "no activation: %s", name);
    gate.activation = (Activation)i;
    if ((gate.gate = readable(&buffers, gate_array, count, 1, width(gate.type))) &&
        (up == Py_None || (gate.up = readable(&buffers, up, count, 1, width(gate.type)))) &&
        (gate.out = writable(&buffers, out, count, 1, width(gate.type)))) {
        run(operators()->open, &gate, (size_t)count, 1024, (size_t)count, team);
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
