/* Reads codes in rows whose scales lie aside: the numbers of a stretch, and for each format the codes of a block. */
#pragma once
#include "packed_blocks.h"

/* Converts eight numbers. */
STEP Eight numbers_of(Number type, const uint8_t *from)
{
    switch (type) {
    case NUMBER_F16: return load_eight(F16, from);
    case NUMBER_BF16: return load_eight(BF16, from);
    case NUMBER_F32: return load_eight(F32, from);
    case NUMBER_U8: return byte_floats(word_at(from));
    case NUMBER_E8M0: {
        Whole e = eight_integers(word_at(from)), none = e == 255;
        return (Eight)((Whole)(half_powers(e) * 2) | (none & 0x7fc00000));
    }
    case NUMBER_E4M3: {
        Whole e = eight_integers(word_at(from)), none = (e & 0x7f) == 0x7f;
        return (Eight)((Whole)positive_e4m3(word_at(from)) | (e & 0x80) << 24 | (none & 0x7fc00000));
    }
    case NO_NUMBER: break;
    }
    return all(1);
}

STEP size_t size_of(Number type)
{
    return type == NUMBER_F32 ? 4 : type == NUMBER_F16 || type == NUMBER_BF16 ? 2 : type == NO_NUMBER ? 0 : 1;
}

/* Loads eight numbers from the i-th on, and zeros in the place of those that are not there. */
STEP Eight numbers_at(const Weight *weight, Number type, const void *numbers, size_t i)
{
    size_t each = size_of(type), left = i < weight->numbers ? weight->numbers - i : 0;
    const uint8_t *at = (const uint8_t *)numbers + (left ? i * each : 0);
    uint8_t end[32] = {0};
    if (left >= 8)
        return numbers_of(type, at);
    memcpy(end, at, left * each);
    return numbers_of(type, end);
}

/* Computes the scales and biases of eight groups. */
STEP void steps_at(const Weight *weight, size_t i, Eight *scales, Eight *biases)
{
    Eight found = numbers_at(weight, weight->scale_type, weight->scales, i);
    if (weight->reciprocal)
        found = weight->factor ? found / all(*weight->factor) : 1 / found;
    else if (weight->factor)
        found *= all(*weight->factor);
    if (weight->halved)
        found *= 0.5f;
    *scales = found, *biases = all(0);
    if (weight->zero_type != NO_NUMBER) {
        Eight zeros = numbers_at(weight, weight->zero_type, weight->zeros, i);
        Eight offset = all((float)weight->offset);
        *biases = weight->zeros_are_biases ? offset * found + zeros : (offset - zeros) * found;
    }
}

enum { RUN = 4 }; /* stretches whose steps are computed together */

/* Fills in the steps of up to RUN stretches from ``block`` on, whose scales lie aside, for each 16 columns. */
TARGET static void put_steps(const Weight *weight, size_t row, size_t block, size_t count, Steps *out)
{
    size_t start = row / weight->block_rows * weight->groups, units = weight->group / 16;
    size_t last = (weight->columns + 15) / 16;
    const Eight lane = {0, 1, 2, 3, 4, 5, 6, 7};
    Eight scales = all(0), biases = all(0);
    size_t first = 0; /* the unit that these numbers begin with */
    for (size_t unit = 2 * block; unit < 2 * (block + count); unit += 2 * STRETCH, out++) {
        if (units == 1) {
            steps_at(weight, start + unit, &out->scales[0], &out->biases[0]);
            steps_at(weight, start + unit + 8, &out->scales[1], &out->biases[1]);
        } else {
            /* Eight groups of at least 128 columns are those of a run. */
            if (unit == 2 * block || (units && units < 8)) {
                first = units ? unit - unit % units : 0;
                steps_at(weight, start + (units ? unit / units : 0), &scales, &biases);
            }
            for (int i = 0; i < 2; i++) {
                /* The half keeps the quotient of whole numbers away from the next one, whatever the rounding. */
                Eight place = (lane + ((float)(unit - first + 8 * i) + 0.5f)) * (units ? 1 / (float)units : 0);
                Whole index = __builtin_convertvector(place, Whole);
                out->scales[i] = selected(scales, index), out->biases[i] = selected(biases, index);
            }
        }
        if (unit + 2 * STRETCH > last) /* what follows are numbers of the next row, or none */
            for (int i = 0; i < 2; i++) {
                Whole here = lane + (float)(8 * i) < (float)(last - unit);
                out->scales[i] = (Eight)((Whole)out->scales[i] & here);
                out->biases[i] = (Eight)((Whole)out->biases[i] & here);
            }
    }
}

/* Returns where the codes of a stretch lie: in the weight, or in ``end`` with zeros after those of the row. Up to ``slack`` bytes
 * after them may be read. */
STEP const uint8_t *codes_at(const Weight *weight, size_t row, size_t block, size_t count, int bits, size_t slack,
                             uint8_t end[STRETCH * BLOCK + SLACK])
{
    const uint8_t *codes = weight->codes + row * weight->row_bytes + block * 4 * bits;
    size_t left = weight->row_bytes - block * 4 * bits, wanted = count * 4 * bits;
    if (left >= wanted + slack)
        return codes;
    memset(end + wanted, 0, SLACK);
    if (left < wanted)
        memset(end + left, 0, wanted - left);
    memcpy(end, codes, left < wanted ? left : wanted);
    return end;
}

#define GROUPED(name, unpacked) \
    CODES(name)                 \
    {                           \
        return unpacked;        \
    }

GROUPED(u1, codes_of(1, at + i * 4))
GROUPED(u2, codes_of(2, at + i * 8))
GROUPED(u3, codes_of(3, at + i * 12))
GROUPED(u4, codes_of(4, at + i * 16))
GROUPED(u5, codes_of(5, at + i * 20))
GROUPED(u6, codes_of(6, at + i * 24))
GROUPED(u8, codes_of(8, at + i * 32))
GROUPED(s8, codes_of(8, at + i * 32) ^ 128)
GROUPED(nibbles, codes_from_the_top(4, at + i * 16))
GROUPED(e2m1, looked_up(E2M1, codes_of(4, at + i * 16)))
