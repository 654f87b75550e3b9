/* Multiplies several rows of float32 inputs with a stretch that is decoded once, in memory. */
#pragma once
#include "packed_formats.h"

/* Returns where the values of a stretch of a row of inputs begin. */
STEP const void *input_at(const Inputs *inputs, size_t at, size_t item)
{
    return (const char *)inputs->values + at * STRETCH * BLOCK * item;
}

STEP void multiply_values(int rows, const Stretch *stretch, const Inputs *inputs, size_t at, size_t count, Eight *sums)
{
    for (int row = 0; row < rows; row++, at += inputs->stretches) {
        const float *input = input_at(inputs, at, 4);
        Eight added[4] = {sums[row], all(0), all(0), all(0)};
        for (size_t i = 0; i < 4 * count; i += 4)
#pragma GCC unroll 4
            for (size_t k = 0; k < 4; k++)
                added[k] = fused(load_eight(F32, input + 8 * (i + k)), stretch->values[i + k], added[k]);
        sums[row] = (added[0] + added[1]) + (added[2] + added[3]);
    }
}

/* Adds the products of sums of inputs with biases. */
STEP Eight with_biases(const Eight biases[2], const float *sums, Eight added)
{
    return fused(load_eight(F32, sums), biases[0], fused(load_eight(F32, sums + 8), biases[1], added));
}

/* Puts what a row of inputs and one of the weight give, with the bias. */
STEP void put_sum(const PackedProduct *product, float sum, size_t row, size_t feature)
{
    if (product->bias)
        sum += load_number(product->bias_from, product->bias, feature);
    put_number(product->to, sum, product->out, row * product->out_features + feature);
}

/* How many blocks are added up apart: a sum of one row would wait for the block before. Blocks beyond the last are of no
 * consequence, as the inputs and scales there are zeros. */
STEP int apart(int rows)
{
    return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

STEP Eight together(const Eight *parts, int count)
{
    return count == 4 ? (parts[0] + parts[1]) + (parts[2] + parts[3]) : count == 2 ? parts[0] + parts[1] : parts[0];
}

/* Multiplies codes with float32 inputs, adds, and scales the sums of 16. */
STEP void multiply_f32(int rows, const Weight *weight, const Stretch *stretch, const Inputs *inputs, size_t at,
                       size_t count, Eight *sums)
{
    const float *scales = (const float *)stretch->steps.scales;
    const Unsigned offset = (Unsigned){0} + (uint8_t)weight->offset;
    const int lanes = apart(rows);
    Eight added[8] = {all(0), all(0), all(0), all(0), all(0), all(0), all(0), all(0)};
    for (size_t first = 0; first < count; first += lanes)
#pragma GCC unroll 4
        for (int lane = 0; lane < lanes; lane++) {
            size_t i = first + lane;
            Unsigned codes = stretch->codes[i] - offset;
            const int8_t *from = (const int8_t *)&codes;
            Eight values[4] = {floats_of(from), floats_of(from + 8), floats_of(from + 16), floats_of(from + 24)};
            Eight low_scale = all(scales[2 * i]), high_scale = all(scales[2 * i + 1]);
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) {
                const float *input = (const float *)input_at(inputs, at + row * inputs->stretches, 4) + i * BLOCK;
                Eight *sum = &added[row * lanes + lane];
                Eight low = fused(load_eight(F32, input + 8), values[1], load_eight(F32, input) * values[0]);
                Eight high = fused(load_eight(F32, input + 24), values[3], load_eight(F32, input + 16) * values[2]);
                *sum = fused(low, low_scale, fused(high, high_scale, *sum));
            }
        }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        const float *of = inputs->steps[at + row * inputs->stretches].sums;
        Eight found = sums[row] + together(added + row * lanes, lanes);
        sums[row] = weight->biased ? with_biases(stretch->steps.biases, of, found) : found;
    }
}

/* Multiplies ``rows`` of the input with a stretch; ``at`` is that of the first row. */
STEP void multiply_rows(int rows, const Weight *weight, const Stretch *stretch, const Inputs *inputs, size_t at,
                        size_t count, Eight *sums)
{
    if (weight->form == VALUES)
        multiply_values(rows, stretch, inputs, at, count, sums);
    else
        multiply_f32(rows, weight, stretch, inputs, at, count, sums);
}
