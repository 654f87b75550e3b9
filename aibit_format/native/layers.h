/* Holds what products of a layer's inputs with 8-bit codes have in common: their arguments, and how sums become results. */
#pragma once
#include "shares.h"
#include "sizes.h"

enum {
    WIDE = 16,        /* rows of the weight in a block */
    TALL = 2,         /* rows of the input multiplied at once, with ... */
    LANES = 4,        /* ... this many rows of the weight */
    SHARE = 4 * WIDE, /* output features that a thread takes at a time */
};

/* How sums become results: each is multiplied by the scale of its output column, and a bias, if there is one, added. */
typedef struct {
    const UnalignedFloat *scales; /* [out_features] */
    const UnalignedFloat *bias;   /* [out_features], or NULL */
    float factor;
    void *out; /* [rows, out_features] */
    Source to;
    size_t out_features;
} Output;

/* Writes up to eight sums of one row times ``scales`` and the factor, from output feature ``feature`` on. */
INLINE void put(Source to, const Output *output, size_t row, size_t feature, size_t count, __m256 sums, __m256 scales)
{
    __m256 values = _mm256_mul_ps(_mm256_mul_ps(sums, scales), _mm256_set1_ps(output->factor));
    if (output->bias)
        values = _mm256_add_ps(values, load_some(output->bias + feature, count));
    store(to, values, output->out, row * output->out_features + feature, count);
}

/* Fills in the output of a product: scales, bias, and memory for results in the dtype ``to``, which is set already; 0,
 * with a Python error, if they do not fit. */
int output_of(Buffers *buffers, PyObject *scale_array, PyObject *bias_array, PyObject *out_array, Py_ssize_t rows,
              Py_ssize_t out_features, Output *output);

/* A call of a layer: inputs in the output's dtype, to be converted to the form that a product takes. */
typedef struct {
    Buffers buffers;
    Py_ssize_t rows, columns;
    const void *inputs; /* [rows, columns] */
    const int8_t *codes;
    Output output;
    int empty;       /* there are no results; nothing bounds the number of empty rows */
    float threshold; /* of int8_linear */
    Team team;
} Layer;

/* Parses a layer's arguments; 0, with a Python error, if they do not fit. The caller releases the buffers in any case. */
int layer_of(PyObject *args, Layer *layer);
