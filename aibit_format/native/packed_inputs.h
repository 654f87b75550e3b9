/* Takes inputs: as float32, or as codes with scales, with what else products want to know of a stretch. */
#pragma once
#include "packed_primitives.h"

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
    float inverse = scale >= 0x1p-126f ? 1 / scale : 0;
    InputSteps *steps = inputs->steps + at;
    char *codes = (char *)inputs->values + at * STRETCH * BLOCK * (kind == IN_I8 ? 1 : 2);
    for (size_t half = 2 * i; half < 2 * (i + count); half++) {
        Whole first = rounded_codes(values[2 * half] * inverse), second = rounded_codes(values[2 * half + 1] * inverse);
        steps->sums[half] = (float)put_codes(kind, first, second, half, codes) * scale;
    }
    for (size_t block = i; block < i + count; block++)
        steps->scales[block] = scale;
}

/* Puts a stretch of inputs where products find it: as float32, or as codes and scales. */
STEP void take_stretch(const Eight values[STRETCH * 4], size_t at, const Inputs *inputs)
{
    switch (inputs->kind) {
    case IN_F32:
        memcpy((float *)inputs->values + at * STRETCH * BLOCK, values, STRETCH * BLOCK * 4);
        for (int i = 0; i < STRETCH * 2; i++)
            inputs->steps[at].sums[i] = sum_of(values[2 * i] + values[2 * i + 1]);
        break;
    case IN_I16: take_codes(IN_I16, values, 0, STRETCH, at, inputs); break;
    case IN_I8:
        for (size_t i = 0; i < STRETCH; i++)
            take_codes(IN_I8, values, i, 1, at, inputs);
        break;
    }
    for (size_t i = 0; i < STRETCH; i++)
        inputs->steps[at].block_sums[i] = inputs->steps[at].sums[2 * i] + inputs->steps[at].sums[2 * i + 1];
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
