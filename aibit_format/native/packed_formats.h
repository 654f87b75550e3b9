/* Says for the number of a format how its stretches are read. Where the number is a constant, so is what follows from it,
 * and functions that take it are compiled for that format alone.
 */
#pragma once
#include "packed_values.h"

#define FORMAT_FACTS(name, columns, bytes, form, offset, unit) \
    {bytes * BLOCK * STRETCH / columns, columns, form, offset, unit},
static const struct {
    int stretch_bytes, columns, form, offset, unit;
} FACTS[] = {FORMATS(FORMAT_FACTS)};

/* Whether scales are those of 32 columns, and not of 16. */
STEP int is_of_blocks(int format)
{
    return FACTS[format].unit == BLOCK;
}

/* Whether rows are whole stretches. */
STEP int has_whole_stretches(int format)
{
    return FACTS[format].columns == STRETCH * BLOCK;
}

/* Returns where the codes of a stretch begin. */
STEP const uint8_t *stretch_at(int format, const Weight *weight, size_t row, size_t block, size_t count,
                               uint8_t end[STRETCH * BLOCK + SLACK])
{
    int bits = FACTS[format].stretch_bytes / BLOCK;
    if (FACTS[format].form == GROUPS)
        return codes_at(weight, row, block, count, bits, bits > 2 && bits % 4 ? SLACK : 0, end);
    return weight->codes + row * weight->row_bytes + block / STRETCH * FACTS[format].stretch_bytes;
}

/* Computes the steps of a stretch. */
STEP void steps_of(int format, const Weight *weight, size_t row, size_t block, size_t count, const uint8_t *at,
                   Steps *out)
{
    switch (format) {
#define STEPS_CASE(name, ...) \
    case FORMAT_##name: name##_steps(at, count, out); break;
        BLOCK_FORMATS(STEPS_CASE)
    default: put_steps(weight, row, block, count, out);
    }
}

/* Unpacks the i-th block of a stretch. */
STEP Unsigned codes_in(int format, const uint8_t *at, size_t i)
{
    switch (format) {
#define CODES_CASE(name, ...) \
    case FORMAT_##name: return name##_codes(at, i);
        CODE_FORMATS(CODES_CASE)
    }
    return (Unsigned){0};
}

/* Decodes a stretch of codes, with steps of 16 columns. */
STEP void decode_codes(int format, const Weight *weight, size_t row, size_t block, size_t count, Stretch *out)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = stretch_at(format, weight, row, block, count, end);
    Steps steps;
    steps_of(format, weight, row, block, count, at, &steps);
    if (is_of_blocks(format)) {
        put_each(steps.scales[0], out->steps.scales);
        if (FACTS[format].form == BIASED)
            put_each(steps.biases[0], out->steps.biases);
    } else
        out->steps = steps;
    if (count == STRETCH)
        UNROLLED
        for (size_t i = 0; i < STRETCH; i++)
            out->codes[i] = codes_in(format, at, i);
    else
        for (size_t i = 0; i < count; i++)
            out->codes[i] = codes_in(format, at, i);
}

typedef void Decoder(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out);

#define CODE_DECODER(name, ...)                                                                                         \
    TARGET static void decode_##name(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out)        \
    {                                                                                                                   \
        if (count == STRETCH)                                                                                           \
            decode_codes(FORMAT_##name, weight, row, block, STRETCH, out);                                              \
        else if (!has_whole_stretches(FORMAT_##name))                                                                   \
            decode_codes(FORMAT_##name, weight, row, block, count, out);                                                \
    }
#define VALUE_DECODER(name, ...)                                                                                        \
    TARGET static void decode_##name(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out)        \
    {                                                                                                                   \
        name##_values(weight, row, block, count, out->values);                                                          \
    }
CODE_FORMATS(CODE_DECODER)
VALUE_FORMATS(VALUE_DECODER)

#define FORMAT_DECODER(name, ...) decode_##name,
static Decoder *const DECODERS[] = {FORMATS(FORMAT_DECODER)};
