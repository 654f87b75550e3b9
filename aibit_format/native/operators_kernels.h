/* Computes what is between products, for the kind of processor that the including file names. */
#pragma once
#include "operators.h"
#include "packed_primitives.h"

/* Rounds eight values to a dtype, and takes them back. */
STEP Eight through(Source type, Eight values)
{
    char memory[32];
    if (type == F32)
        return values;
    store_eight(type, values, memory);
    return load_eight(type, memory);
}

STEP float through_one(Source type, float value)
{
    return type == F32 ? value : type == F16 ? half_bits(to_half(value)) : from_bits((uint32_t)to_bf16(value) << 16);
}

STEP Eight selected_of(Whole condition, Eight yes, Eight no)
{
    return (Eight)(((Whole)yes & condition) | ((Whole)no & ~condition));
}

typedef uint32_t Words __attribute__((vector_size(32)));

/* Computes e^x with an error below 2 ulp, as Cephes' expf does; NaN stays NaN. */
STEP Eight exponential(Eight x)
{
    x = selected_of(x < all(-87.3f), all(-87.3f), x);
    x = selected_of(x > all(88.3f), all(88.3f), x);
    Eight shifted = x * 1.44269504088896341f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    Words exponent = (Words)shifted << 23; /* of a NaN, anything */
    Eight r = fused(n, all(-0.693359375f), x), p = all(1.9875691500e-4f);
    r = fused(n, all(2.12194440e-4f), r);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    return (Eight)((Words)(fused(p, r * r, r) + 1) + exponent);
}

STEP Eight tanh_of(Eight x)
{
    return 1 - 2 / (exponential(x + x) + 1);
}

TARGET static void normalize(const void *task, size_t first, size_t last)
{
    const Normalization *norm = task;
    size_t columns = norm->columns, whole = columns / 8 * 8, each = width(norm->type), each_weight = width(norm->weight_type);
    for (size_t row = first; row < last; row++) {
        const char *values = (const char *)norm->values + row * columns * each;
        char *out = (char *)norm->out + row * columns * each;
        Eight sums = all(0);
        for (size_t i = 0; i < whole; i += 8) {
            Eight x = load_eight(norm->type, values + i * each);
            sums = fused(x, x, sums);
        }
        float sum = sum_of(sums);
        for (size_t i = whole; i < columns; i++) {
            float x = load_number(norm->type, values, i);
            sum += x * x;
        }
        float factor = 1 / __builtin_sqrtf(sum / (float)columns + norm->epsilon);
        for (size_t i = 0; i < whole; i += 8) {
            Eight x = load_eight(norm->type, values + i * each) * factor;
            if (norm->rounds)
                x = through(norm->type, x);
            if (norm->weight)
                x *= load_eight(norm->weight_type, (const char *)norm->weight + i * each_weight) + norm->offset;
            store_eight(norm->type, x, out + i * each);
        }
        for (size_t i = whole; i < columns; i++) {
            float x = load_number(norm->type, values, i) * factor;
            if (norm->rounds)
                x = through_one(norm->type, x);
            if (norm->weight)
                x *= load_number(norm->weight_type, norm->weight, i) + norm->offset;
            put_number(norm->type, x, out, i);
        }
    }
}

/* Returns x * cosine + other * sine, rounded after each operation. */
STEP Eight turned_by(Source type, Eight x, Eight cosine, Eight other, Eight sine)
{
    return through(type, x * cosine) + through(type, other * sine);
}

TARGET static void rotate(const void *task, size_t first, size_t last)
{
    const Rotation *rotation = task;
    Source type = rotation->type;
    size_t each = width(type), size = rotation->size, half = rotation->cosines ? rotation->turned / 2 : 0;
    for (size_t i = first; i < last; i++) { /* of batches, positions and heads */
        size_t head = i % rotation->heads, position = i / rotation->heads % rotation->positions;
        size_t batch = i / rotation->heads / rotation->positions;
        const char *from = rotation->values + i * size * each;
        char *to = rotation->out + ((batch * rotation->heads + head) * rotation->capacity + rotation->first + position) * size * each;
        size_t angle = ((rotation->angles > 1 ? batch : 0) * rotation->positions + position) * 2 * half * each;
        const char *cosines = (const char *)rotation->cosines + angle, *sines = (const char *)rotation->sines + angle;
        for (size_t k = 0; k < half; k += 8) {
            size_t low = k * each, high = (half + k) * each;
            Eight x = load_eight(type, from + low), y = load_eight(type, from + high);
            store_eight(type, turned_by(type, x, load_eight(type, cosines + low), -y, load_eight(type, sines + low)), to + low);
            store_eight(type, turned_by(type, y, load_eight(type, cosines + high), x, load_eight(type, sines + high)), to + high);
        }
        memcpy(to + 2 * half * each, from + 2 * half * each, (size - 2 * half) * each);
    }
}

/* Computes the scores of up to four queries with one key. */
STEP void score(size_t rows, const float *queries, size_t row_length, Source type, const char *key, size_t size,
                float *scores, size_t j)
{
    Eight sums[4] = {all(0), all(0), all(0), all(0)};
    for (size_t i = 0; i < size; i += 8) {
        Eight x = load_eight(type, key + i * width(type));
#pragma GCC unroll 4
        for (size_t row = 0; row < rows; row++)
            sums[row] = fused(load_eight(F32, queries + row * row_length + i), x, sums[row]);
    }
#pragma GCC unroll 4
    for (size_t row = 0; row < rows; row++)
        scores[row * row_length + j] = sum_of(sums[row]);
}

/* Adds 16 columns of values, multiplied by their weights, for up to four queries. */
STEP void add_values(size_t rows, const float *weights, size_t row_length, Source type, const char *values, size_t stride,
                     size_t first, size_t last, int columns, float *out)
{
    Eight sums[4][2];
#pragma GCC unroll 4
    for (size_t row = 0; row < rows; row++)
        sums[row][0] = sums[row][1] = all(0);
    for (size_t j = first; j < last; j++) {
        const char *at = values + j * stride;
        Eight low = load_eight(type, at), high = columns > 8 ? load_eight(type, at + 8 * width(type)) : low;
#pragma GCC unroll 4
        for (size_t row = 0; row < rows; row++) {
            Eight weight = all(weights[row * row_length + j]);
            sums[row][0] = fused(weight, low, sums[row][0]);
            sums[row][1] = fused(weight, high, sums[row][1]);
        }
    }
#pragma GCC unroll 4
    for (size_t row = 0; row < rows; row++) {
        store_eight(F32, sums[row][0], out + row * row_length);
        if (columns > 8)
            store_eight(F32, sums[row][1], out + row * row_length + 8);
    }
}

/* Turns scores ``first`` to ``last`` into weights whose sum is 1; those around them become 0. */
STEP void soften(const Attention *attention, float *scores, size_t first, size_t last)
{
    float top = -__builtin_inff(), sum = 0;
    size_t end = (attention->keys + 7) / 8 * 8;
    Eight sums = all(0);
    if (attention->cap != 0)
        for (size_t j = 0; j < end; j += 8) {
            Eight x = load_eight(F32, scores + j) / attention->cap;
            store_eight(F32, tanh_of(x) * attention->cap, scores + j);
        }
    for (size_t j = first; j < last; j++)
        top = scores[j] > top ? scores[j] : top;
    for (size_t j = 0; j < end; j += 8)
        store_eight(F32, exponential(load_eight(F32, scores + j) - top), scores + j);
    memset(scores, 0, first * sizeof *scores);
    memset(scores + last, 0, (end - last) * sizeof *scores);
    for (size_t j = 0; j < end; j += 8)
        sums += load_eight(F32, scores + j);
    sum = sum_of(sums);
    for (size_t j = 0; j < end; j += 8)
        store_eight(F32, load_eight(F32, scores + j) / sum, scores + j);
}

#define IN_FOURS(rows, call)                 \
    do                                       \
        switch (rows) {                      \
        case 1: call(1); break;              \
        case 2: call(2); break;              \
        case 3: call(3); break;              \
        default: call(4); break;             \
        }                                    \
    while (0)

TARGET static void attend(const void *task, size_t first_pair, size_t last_pair)
{
    const Attention *attention = task;
    Source type = attention->type;
    size_t each = width(type), size = attention->size, value_size = attention->value_size, keys = attention->keys;
    size_t queries = attention->queries, rows = attention->group * queries, length = attention->scratch_row;
    size_t padded = (keys + 7) / 8 * 8;
    for (size_t pair = first_pair; pair < last_pair; pair++) {
        const char *key = attention->key + pair * attention->capacity * size * each;
        const char *value = attention->value + pair * attention->capacity * value_size * each;
        const char *query = attention->query + pair * rows * size * each;
        float *scores = attention->scratch + pair * rows * length, *wide = scores + padded, *found = wide + size;
        for (size_t row = 0; row < rows; row++) {
            memset(scores + row * length, 0, padded * sizeof *scores);
            for (size_t i = 0; i < size; i += 8)
                store_eight(F32, load_eight(type, query + (row * size + i) * each) * attention->scale, wide + row * length + i);
        }
        for (size_t row = 0; row < rows; row += 4) {
            size_t count = rows - row < 4 ? rows - row : 4;
            for (size_t j = 0; j < keys; j++) {
#define SCORE(n) score(n, wide + row * length, length, type, key + j * size * each, size, scores + row * length, j)
                IN_FOURS(count, SCORE);
            }
        }
        for (size_t row = 0; row < rows; row++) {
            size_t last = keys - queries + row % queries + 1;
            size_t first = attention->window && last > attention->window ? last - attention->window : 0;
            soften(attention, scores + row * length, first, last);
        }
        for (size_t row = 0; row < rows; row += 4) {
            size_t count = rows - row < 4 ? rows - row : 4;
            for (size_t i = 0; i < value_size; i += 16) {
                int columns = value_size - i < 16 ? 8 : 16;
                size_t first = attention->window && keys - queries + 1 > attention->window ? keys - queries + 1 - attention->window : 0;
#define ADD(n) add_values(n, scores + row * length, length, type, value + i * each, value_size * each, first, keys, columns, found + row * length + i)
                IN_FOURS(count, ADD);
            }
        }
        for (size_t row = 0; row < rows; row++) {
            size_t batch = pair / attention->heads, head = pair % attention->heads * attention->group + row / queries;
            size_t at = (batch * queries + row % queries) * attention->heads * attention->group + head;
            char *out = attention->out + at * value_size * each;
            for (size_t i = 0; i < value_size; i += 8)
                store_eight(type, load_eight(F32, found + row * length + i), out + i * each);
        }
    }
}

STEP Eight activated(Activation activation, Eight x)
{
    switch (activation) {
    case SILU: return x / (1 + exponential(-x));
    case GELU_TANH: /* (1 + tanh(u)) / 2 is 1 / (1 + e^-2u), where nothing cancels */
        return x / (1 + exponential(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    default: return selected_of(x < all(0), all(0), x);
    }
}

TARGET static void open_gate(const void *task, size_t first, size_t last)
{
    const Gate *gate = task;
    Source type = gate->type;
    size_t each = width(type);
    size_t i = first;
    for (; i + 8 <= last; i += 8) {
        Eight x = through(type, activated(gate->activation, load_eight(type, gate->gate + i * each)));
        if (gate->up)
            x *= load_eight(type, gate->up + i * each);
        store_eight(type, x, gate->out + i * each);
    }
    for (; i < last; i += 8) {
        size_t count = last - i;
        char some[3][32] = {{0}};
        memcpy(some[0], gate->gate + i * each, count * each);
        Eight x = through(type, activated(gate->activation, load_eight(type, some[0])));
        if (gate->up) {
            memcpy(some[1], gate->up + i * each, count * each);
            x *= load_eight(type, some[1]);
        }
        store_eight(type, x, some[2]);
        memcpy(gate->out + i * each, some[2], count * each);
    }
}
