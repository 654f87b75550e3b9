/* Products of few rows with 4-bit weights, for AVX2: codes are decoded in registers, and multiplied there.
 *
 * A weight is rounded to the dtype of the inputs, as when it is decoded first; products are added in float32.
 */
#pragma once
#include "decode.h"

enum { ROWS = 4 }; /* of the input, multiplied at once */

typedef struct {
    const float *input; /* [rows, columns] */
    size_t rows, columns;
    const uint8_t *codes; /* [out_features, columns / 2] */
    size_t size;          /* of a block, of which columns are a multiple */
    const float *book, *absmax;
    Source to;  /* what weights are rounded to */
    float *out; /* [rows, out_features] */
    size_t out_features;
} FourBitProduct;

/* ``rows`` of the input from ``top`` on, times one row of the weight. Two sums each, so that one addition need not wait
 * for the one before. */
INLINE void multiply_row(const FourBitProduct *product, size_t top, int rows, size_t feature, Source to)
{
    size_t columns = product->columns, size = product->size;
    const uint8_t *codes = product->codes + feature * columns / 2;
    const float *absmax = product->absmax + feature * (columns / size), *input = product->input + top * columns;
    __m256 sums[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS * 2; i++)
        sums[i / 2][i % 2] = _mm256_setzero_ps();
    for (size_t column = 0; column < columns; column += size) {
        const Values values = values_of(product->book, *absmax++, to);
        for (size_t i = column; i < column + size; i += 16)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                __m256 weights = looked_up(codes + i / 2 + 4 * half, &values);
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++)
                    sums[row][half] = _mm256_fmadd_ps(_mm256_loadu_ps(input + row * columns + i + 8 * half), weights,
                                                      sums[row][half]);
            }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
        product->out[(top + row) * product->out_features + feature] =
            sum_of_eight(_mm256_add_ps(sums[row][0], sums[row][1]));
}

INLINE void multiply_rows(const FourBitProduct *product, size_t first, size_t last, Source to)
{
    for (size_t top = 0; top < product->rows; top += ROWS)
        for (size_t feature = first; feature < last; feature++)
            switch (product->rows - top) {
            case 1: multiply_row(product, top, 1, feature, to); break;
            case 2: multiply_row(product, top, 2, feature, to); break;
            case 3: multiply_row(product, top, 3, feature, to); break;
            default: multiply_row(product, top, ROWS, feature, to);
            }
}

VECTORS static void multiply_four_bit_share(const void *task, size_t first, size_t last)
{
    const FourBitProduct *product = task;
    switch (product->to) {
    case F16: multiply_rows(product, first, last, F16); break;
    case BF16: multiply_rows(product, first, last, BF16); break;
    case F32: multiply_rows(product, first, last, F32); break;
    }
}

static void multiply_four_bit(const FourBitProduct *product, unsigned threads, Parallel parallel)
{
    in_shares(multiply_four_bit_share, product, product->out_features, 32, threads, parallel);
}
