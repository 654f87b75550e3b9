/* Computes products of packed weights, for the kind of processor that the including file names: its functions make up one
 * ``Target``.
 */
#pragma once
#include "packed_formats.h"

/* Rounds to whole numbers, to nearest with ties to even, magnitudes below 2^22: the lowest bits of 1.5 * 2^23 + x. */
STEP Whole rounded_codes(Eight values)
{
    Eight shifted = values + 0x1.8p23f;
    return (Whole)shifted - 0x4b400000;
}

/* Returns the largest magnitude of values, as bits; NaN is larger than all. */
STEP uint32_t largest_of(const Eight *values, size_t count)
{
    Whole top = {0};
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        Whole bits = (Whole)values[i] & 0x7fffffff, more = bits > top;
        top = (bits & more) | (top & ~more);
    }
    for (int i = 0; i < 8; i++)
        largest = (uint32_t)top[i] > largest ? (uint32_t)top[i] : largest;
    return largest;
}

/* Puts 16 whole numbers where products find them as codes, the i-th 16 of a stretch; returns their sum. */
STEP int32_t put_codes(Activations kind, Whole first, Whole second, size_t i, void *values)
{
    int32_t whole[16];
    uint32_t sum = 0; /* of what is left of a NaN it may wrap */
    memcpy(whole, &first, 32), memcpy(whole + 8, &second, 32);
    for (int k = 0; k < 16; k++) {
        size_t column = 16 * i + k;
        sum += (uint32_t)whole[k];
        if (kind == IN_I8)
            ((int8_t *)values)[column] = (int8_t)whole[k];
        else
            ((int16_t *)values)[column / BLOCK * BLOCK + place_i16(column % BLOCK)] = (int16_t)whole[k];
    }
    return (int32_t)sum;
}

/* Puts ``count`` blocks of inputs, from the i-th of a stretch on, where products find them as codes with one scale. */
STEP void take_codes(Activations kind, const Eight *values, size_t i, size_t count, size_t at, const Inputs *inputs)
{
    uint32_t largest = largest_of(values + 4 * i, 4 * count);
    /* Of a NaN or an infinity nothing is left but NaN. */
    float scale = largest < 0x7f800000 ? from_bits(largest) / (kind == IN_I8 ? 127 : 32767) : __builtin_nanf("");
    float inverse = scale >= 0x1p-126f ? 1 / scale : 0, *sums = inputs->sums + at * STRETCH * 2;
    char *codes = (char *)inputs->values + at * STRETCH * BLOCK * (kind == IN_I8 ? 1 : 2);
    for (size_t half = 2 * i; half < 2 * (i + count); half++) {
        Whole first = rounded_codes(values[2 * half] * inverse), second = rounded_codes(values[2 * half + 1] * inverse);
        sums[half] = (float)put_codes(kind, first, second, half, codes) * scale;
    }
    for (size_t block = i; block < i + count; block++)
        inputs->scales[at * STRETCH + block] = scale;
}

/* Puts a stretch of inputs where products find it: as float32, or as codes and scales. */
STEP void take_stretch(const Eight values[STRETCH * 4], size_t at, const Inputs *inputs)
{
    switch (inputs->kind) {
    case IN_F32:
        memcpy((float *)inputs->values + at * STRETCH * BLOCK, values, STRETCH * BLOCK * 4);
        for (int i = 0; i < STRETCH * 2; i++)
            inputs->sums[at * STRETCH * 2 + i] = sum_of(values[2 * i] + values[2 * i + 1]);
        break;
    case IN_I16: take_codes(IN_I16, values, 0, STRETCH, at, inputs); break;
    case IN_I8:
        for (size_t i = 0; i < STRETCH; i++)
            take_codes(IN_I8, values, i, 1, at, inputs);
        break;
    }
}

TARGET static void take(Source source, const void *from, size_t columns, size_t row, Inputs *inputs)
{
    size_t each = width(source), step = STRETCH * BLOCK;
    for (size_t i = 0; i < inputs->stretches; i++) {
        const char *at = (const char *)from + i * step * each;
        char end[STRETCH * BLOCK * 4];
        Eight values[STRETCH * 4];
        if (columns - i * step < step) {
            memset(end, 0, sizeof end);
            memcpy(end, at, (columns - i * step) * each);
            at = end;
        }
        for (int k = 0; k < STRETCH * 4; k++)
            values[k] = load_eight(source, at + k * 8 * each);
        take_stretch(values, row * inputs->stretches + i, inputs);
    }
}

/* Returns where the values of a stretch of a row of inputs begin, and its sums. */
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
    const float *scales = (const float *)stretch->scales;
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
        const float *of = inputs->sums + (at + row * inputs->stretches) * STRETCH * 2;
        Eight found = sums[row] + together(added + row * lanes, lanes);
        sums[row] = weight->biased ? with_biases(stretch->biases, of, found) : found;
    }
}

/* Multiplies codes with inputs in codes. Sums are exact; they are scaled and added in float32. */
STEP void multiply_codes(Activations kind, int wide, int rows, const Weight *weight, const Stretch *stretch,
                         const Inputs *inputs, size_t at, size_t count, Eight *sums)
{
    int less = kind == IN_I8 && wide && !WIDE_CODES; /* the offset is taken away already */
    int biased = weight->biased || (weight->offset && !less);
    const int lanes = apart(rows);
    Eight added[8] = {all(0), all(0), all(0), all(0), all(0), all(0), all(0), all(0)}, biases[2];
    float offset = less ? 0 : (float)weight->offset;
    const size_t item = kind == IN_I8 ? 1 : 2, next = inputs->stretches * STRETCH * BLOCK * item;
    for (int i = 0; i < 2; i++)
        biases[i] = weight->biased ? stretch->biases[i] - stretch->scales[i] * offset : -(stretch->scales[i] * offset);
    for (size_t first = 0; first < count; first += lanes)
#pragma GCC unroll 4
        for (int lane = 0; lane < lanes; lane++) {
            size_t i = first + lane;
            Unsigned codes = stretch->codes[i];
            Eight scales = pair_at((const float *)stretch->scales, i);
            const char *input = (const char *)input_at(inputs, at, item) + i * BLOCK * item;
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++, input += next) {
                Whole exact = kind == IN_I8 ? dot_i8(codes, wide, (const int8_t *)input)
                                            : dot_i16(codes, (const int16_t *)input);
                Eight scale = scales;
                if (kind == IN_I8)
                    scale *= all(inputs->scales[(at + row * inputs->stretches) * STRETCH + i]);
                added[row * lanes + lane] = fused(to_floats(exact), scale, added[row * lanes + lane]);
            }
        }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        size_t stretch_of_row = at + row * inputs->stretches;
        Eight found = together(added + row * lanes, lanes);
        if (kind == IN_I16)
            found *= all(inputs->scales[stretch_of_row * STRETCH]);
        if (biased)
            found = with_biases(biases, inputs->sums + stretch_of_row * STRETCH * 2, found);
        sums[row] += found;
    }
}

/* Multiplies ``rows`` of the input with a stretch; ``at`` is that of the first row. */
STEP void multiply_rows(int rows, const Weight *weight, const Stretch *stretch, const Inputs *inputs, size_t at,
                        size_t count, Eight *sums)
{
    if (weight->form == VALUES)
        multiply_values(rows, stretch, inputs, at, count, sums);
    else if (inputs->kind == IN_F32)
        multiply_f32(rows, weight, stretch, inputs, at, count, sums);
    else if (inputs->kind == IN_I16)
        multiply_codes(IN_I16, 0, rows, weight, stretch, inputs, at, count, sums);
    else if (weight->offset == 128)
        multiply_codes(IN_I8, 1, rows, weight, stretch, inputs, at, count, sums);
    else
        multiply_codes(IN_I8, 0, rows, weight, stretch, inputs, at, count, sums);
}

/* Multiplies up to MOST_ROWS rows, from ``top`` on, with one row of the weight, which is decoded once. */
STEP void multiply_feature(const PackedProduct *product, size_t top, size_t rows, size_t feature)
{
    const Weight *weight = product->weight;
    const Inputs *inputs = product->inputs;
    Decoder *decode = DECODERS[weight->format];
    size_t blocks = (weight->columns + BLOCK - 1) / BLOCK;
    Eight sums[MOST_ROWS];
    Stretch stretch;
    memset(sums, 0, rows * sizeof sums[0]);
    for (size_t block = 0; block < blocks; block += STRETCH) {
        size_t count = blocks - block < STRETCH ? blocks - block : STRETCH, row = 0;
        size_t at = top * inputs->stretches + block / STRETCH;
        const char *ahead = (const char *)weight->codes + feature * weight->row_bytes;
        ahead += block / STRETCH * weight->stretch_bytes + FETCHED;
        for (size_t byte = 0; byte < weight->stretch_bytes; byte += 64)
            __builtin_prefetch(ahead + byte);
        decode(weight, feature, block, count, &stretch);
        for (; row + 8 <= rows; row += 8)
            multiply_rows(8, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
        for (; row + 2 <= rows; row += 2)
            multiply_rows(2, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
        if (row < rows)
            multiply_rows(1, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
    }
    for (size_t row = 0; row < rows; row++) {
        float sum = sum_of(sums[row]);
        if (product->bias)
            sum += product->bias[feature];
        put_number(product->to, sum, product->out, (top + row) * product->out_features + feature);
    }
}

TARGET static void multiply(const void *task, size_t first, size_t last)
{
    const PackedProduct *product = task;
    for (size_t top = 0; top < product->inputs->rows; top += MOST_ROWS) {
        size_t left = product->inputs->rows - top;
        for (size_t feature = first; feature < last; feature++)
            multiply_feature(product, top, left < MOST_ROWS ? left : MOST_ROWS, feature);
    }
}

/* Turns codes into values, rounding after each operation as the schemes do. */
STEP void values_of_codes(const Weight *weight, Stretch *stretch, size_t count)
{
    const Unsigned offset = (Unsigned){0} + (uint8_t)weight->offset;
    for (size_t i = 0; i < count; i++) {
        Unsigned codes = stretch->codes[i] - offset;
        for (int k = 0; k < 4; k++) {
            size_t half = 2 * i + k / 2;
            Eight values = floats_of((const int8_t *)&codes + 8 * k) * all(((const float *)stretch->scales)[half]);
            if (weight->biased)
                values += all(((const float *)stretch->biases)[half]);
            stretch->values[4 * i + k] = values;
        }
    }
}

STEP void put_values(const Eight *values, size_t count, Source to, char *out)
{
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        store_eight(to, values[i / 8], out + i * width(to));
    for (; i < count; i++)
        put_number(to, ((const float *)values)[i], out, i);
}

TARGET static void decode(const void *task, size_t first, size_t last)
{
    const PackedValues *task_values = task;
    const Weight *weight = task_values->weight;
    size_t columns = weight->columns, each = width(task_values->to);
    Stretch stretch;
    for (size_t row = first; row < last; row++)
        for (size_t column = 0; column < columns; column += STRETCH * BLOCK) {
            size_t left = columns - column < STRETCH * BLOCK ? columns - column : STRETCH * BLOCK;
            size_t count = (left + BLOCK - 1) / BLOCK;
            DECODERS[weight->format](weight, task_values->first + row, column / BLOCK, count, &stretch);
            if (weight->form != VALUES)
                values_of_codes(weight, &stretch, count);
            put_values(stretch.values, left, task_values->to, (char *)task_values->out + (row * columns + column) * each);
        }
}
