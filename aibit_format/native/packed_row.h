/* Multiplies one row of inputs with codes as they are unpacked: they stay in registers. */
#pragma once
#include "packed_panel.h"

/* Computes what codes of a stretch are multiplied by, with the scales of inputs in it, and the products of biases. */
STEP Eight take_steps(int format, Activations kind, const Weight *weight, const Steps *steps, const InputSteps *inputs,
                      int offset, Eight scales[2])
{
    int biased = FACTS[format].form == BIASED || (FACTS[format].form == GROUPS && weight->biased);
    Eight sums = all(0), given[2] = {load_eight(F32, inputs->scales), all(0)};
    for (int i = 0; i < (is_of_blocks(format) ? 1 : 2); i++) {
        const float *of = is_of_blocks(format) ? inputs->block_sums : inputs->sums + 8 * i;
        if (FACTS[format].form == BIASED)
            sums = fused(steps->biases[i], load_eight(F32, of), sums);
        else if (offset || biased)
            sums = fused((biased ? steps->biases[i] : all(0)) - steps->scales[i] * (float)offset, load_eight(F32, of),
                         sums);
    }
    if (kind != IN_F32 && !is_of_blocks(format))
        put_each(given[0], given);
    for (int i = 0; i < (is_of_blocks(format) ? 1 : 2); i++)
        scales[i] = kind == IN_F32 ? steps->scales[i] : steps->scales[i] * given[i];
    return sums;
}

/* Multiplies a block of codes with inputs, scales the sums and adds them. */
STEP Eight block_product(int format, Activations kind, int offset, const float *scales, size_t i, Unsigned codes,
                         const void *values, Eight sum)
{
    const int item = kind == IN_I8 ? 1 : kind == IN_I16 ? 2 : 4;
    const char *input = (const char *)values + i * BLOCK * item;
    if (kind == IN_F32) {
        Unsigned numbers = codes - (uint8_t)offset;
        const int8_t *from = (const int8_t *)&numbers;
        Eight low = fused(load_eight(F32, input + 32), floats_of(from + 8), load_eight(F32, input) * floats_of(from));
        Eight high = load_eight(F32, input + 64) * floats_of(from + 16);
        high = fused(load_eight(F32, input + 96), floats_of(from + 24), high);
        if (is_of_blocks(format))
            return fused(low + high, all(scales[i]), sum);
        return fused(low, all(scales[2 * i]), fused(high, all(scales[2 * i + 1]), sum));
    }
    Whole exact = kind == IN_I8 ? dot_i8(codes, FACTS[format].offset == 128, (const int8_t *)input)
                                : dot_i16(codes, (const int16_t *)input);
    return fused(to_floats(exact), is_of_blocks(format) ? all(scales[i]) : pair_at(scales, i), sum);
}

/* Multiplies a stretch of ``count`` blocks. */
STEP Eight stretch_product(int format, Activations kind, const Weight *weight, size_t feature, size_t block,
                           size_t count, Steps run[RUN], const void *values, const InputSteps *inputs)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = stretch_at(format, weight, feature, block, count, end);
    const int offset = FACTS[format].form == GROUPS ? weight->offset : FACTS[format].offset;
    const int less = kind == IN_F32 || (kind == IN_I8 && FACTS[format].offset == 128 && !WIDE_CODES);
    Eight scales[2], parts[4] = {all(0), all(0), all(0), all(0)};
    const float *each = (const float *)scales;
    Steps *steps = run;
    if (FACTS[format].form == GROUPS) {
        size_t place = block / STRETCH % RUN, left = (weight->columns + BLOCK - 1) / BLOCK - block;
        if (!place)
            put_steps(weight, feature, block, left < RUN * STRETCH ? left : RUN * STRETCH, run);
        steps += place;
    } else
        steps_of(format, weight, feature, block, count, at, steps);
    parts[0] = take_steps(format, kind, weight, steps, inputs, less ? 0 : offset, scales);
    /* In memory: a load that spreads a number over a vector costs less than what moves it between lanes. */
    __asm__("" : "+m"(scales));
    if (count == STRETCH)
        UNROLLED
        for (size_t i = 0; i < STRETCH; i++)
            parts[i % 4] = block_product(format, kind, offset, each, i, codes_in(format, at, i), values, parts[i % 4]);
    else
        for (size_t i = 0; i < count; i++)
            parts[0] = block_product(format, kind, offset, each, i, codes_in(format, at, i), values, parts[0]);
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

/* Multiplies a row of inputs with one of a weight. */
STEP float feature_product(int format, Activations kind, const Weight *weight, const Inputs *inputs, size_t row,
                           size_t feature)
{
    const int item = kind == IN_I8 ? 1 : kind == IN_I16 ? 2 : 4;
    size_t blocks = (weight->columns + BLOCK - 1) / BLOCK, at = row * inputs->stretches, block = 0;
    const char *values = (const char *)inputs->values + at * STRETCH * BLOCK * item;
    const InputSteps *steps = inputs->steps + at;
    const uint8_t *ahead = weight->codes + feature * weight->row_bytes + FETCHED;
    Eight sum = all(0);
    Steps run[RUN];
    for (; block + STRETCH <= blocks; block += STRETCH, values += STRETCH * BLOCK * item, steps++) {
#pragma GCC unroll 8
        for (int byte = 0; byte < FACTS[format].stretch_bytes; byte += 64)
            __builtin_prefetch(ahead + byte);
        ahead += FACTS[format].stretch_bytes;
        sum += stretch_product(format, kind, weight, feature, block, STRETCH, run, values, steps);
    }
    if (!has_whole_stretches(format) && block < blocks)
        sum += stretch_product(format, kind, weight, feature, block, blocks - block, run, values, steps);
    return sum_of(sum);
}

/* Multiplies a row of inputs with rows ``first`` to ``last`` of a weight. */
STEP void multiply_row(int format, Activations kind, const PackedProduct *product, size_t row, size_t first, size_t last)
{
    for (size_t feature = first; feature < last; feature++) {
        float sum = feature_product(format, kind, product->weight, product->inputs, row, feature);
        put_sum(product, sum, row, feature);
    }
}

typedef void RowProduct(const PackedProduct *product, size_t row, size_t first, size_t last);

#define ROW_PRODUCT(name, ...)                                                                                      \
    TARGET static void multiply_##name(const PackedProduct *product, size_t row, size_t first, size_t last)         \
    {                                                                                                               \
        switch (product->inputs->kind) {                                                                            \
        case IN_F32: multiply_row(FORMAT_##name, IN_F32, product, row, first, last); break;                         \
        case IN_I16: multiply_row(FORMAT_##name, IN_I16, product, row, first, last); break;                         \
        case IN_I8: multiply_row(FORMAT_##name, IN_I8, product, row, first, last); break;                           \
        }                                                                                                           \
    }
CODE_FORMATS(ROW_PRODUCT)

#define FORMAT_PRODUCT(name, ...) multiply_##name,
/* Formats of values come last, and have none. */
static RowProduct *const ROW_PRODUCTS[] = {CODE_FORMATS(FORMAT_PRODUCT)};

/* Widens 16 codes of f8_e4m3 or f8_e5m2 to float16, those of e4m3 256 times smaller. */
STEP WideBits halves_of(int format, const uint8_t *from)
{
    /* Without the second highest bit, signed codes of e4m3 are such float16s. */
    return format == FORMAT_e4m3 ? signed_bytes(from) << 7 & 0xbfff : signed_bytes(from) << 8;
}

/* Multiplies the only row of float32 inputs with one of 8-bit floats, which stay in registers, and scales the sums of 16. Says
 * in ``none`` whether a code is not a number, whose sum is not one either. */
STEP float floats_product(int format, const Weight *weight, const Inputs *inputs, size_t feature, int *none)
{
    size_t blocks = (weight->columns + BLOCK - 1) / BLOCK;
    const float *input = inputs->values;
    const uint8_t *ahead = weight->codes + feature * weight->row_bytes + FETCHED;
    const float factor = format == FORMAT_e4m3 ? 256 : 1;
    Eight parts[4] = {all(0), all(0), all(0), all(0)};
    Unsigned lost = {0};
    Steps run[RUN];
    for (size_t block = 0; block < blocks; block += STRETCH, input += STRETCH * BLOCK, ahead += STRETCH * BLOCK) {
        uint8_t end[STRETCH * BLOCK + SLACK];
        size_t left = blocks - block, count = left < STRETCH ? left : STRETCH, place = block / STRETCH % RUN;
        const uint8_t *at = codes_at(weight, feature, block, count, 8, 0, end);
        const float *scales = (const float *)run[place].scales;
        if (!place)
            put_steps(weight, feature, block, left < RUN * STRETCH ? left : RUN * STRETCH, run);
        for (size_t byte = 0; byte < STRETCH * BLOCK; byte += 64)
            __builtin_prefetch(ahead + byte);
        for (size_t i = 0; i < count; i++) {
            if (format == FORMAT_e4m3)
                lost |= (Unsigned)((load_block(at + BLOCK * i) & 0x7f) == 0x7f);
#pragma GCC unroll 2
            for (size_t k = 2 * i; k < 2 * i + 2; k++) {
                WideBits wide = halves_of(format, at + 16 * k);
                HalfBits half[2];
                memcpy(half, &wide, 32);
                Eight low = load_eight(F32, input + 16 * k) * eight_halves(half[0]);
                Eight both = fused(load_eight(F32, input + 16 * k + 8), eight_halves(half[1]), low);
                parts[k % 4] = fused(both, all(scales[k]), parts[k % 4]);
            }
        }
    }
    Words any = (Words)lost;
    *none = (any[0] | any[1] | any[2] | any[3]) != 0;
    return sum_of((parts[0] + parts[1]) + (parts[2] + parts[3])) * factor;
}
