/* Reads GGML's blocks, whose scales are inside (schemes/ggml.py): for each format its steps, and the codes of a block.
 *
 * ``at`` is where a stretch of a row begins, and ``count`` how many blocks of 32 columns it has.
 */
#pragma once
#include "packed_bits.h"

/* Loads the float16 of each of ``count`` blocks of 32 columns; ``each`` that many have the same. */
STEP Eight block_halves(const uint8_t *at, size_t bytes, size_t each, size_t count)
{
    HalfBits bits = {0};
#pragma GCC unroll 8
    for (size_t i = 0; i < STRETCH; i++)
        if (i < count)
            bits = with_half(bits, (int)i, at + i / each * bytes);
    return eight_halves(bits);
}

/* Loads the two float16 that each of ``count`` blocks begins with: a scale and a bias. */
STEP void put_block_pairs(const uint8_t *at, size_t bytes, size_t count, Steps *out)
{
    Eight pairs[2];
    for (int i = 0; i < 2; i++) {
        HalfBits bits = {0};
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            if (4 * i + k < count)
                bits = with_pair(bits, (int)k, at + (4 * i + k) * bytes);
        pairs[i] = eight_halves(bits);
    }
    out->scales[0] = of_both(pairs[0], pairs[1], 0), out->biases[0] = of_both(pairs[0], pairs[1], 1);
}

STEP Eight block_half_powers(const uint8_t *at, size_t bytes, size_t count)
{
    uint64_t each = 0;
#pragma GCC unroll 8
    for (size_t i = 0; i < STRETCH; i++)
        if (i < count)
            each |= (uint64_t)at[i * bytes] << 8 * i;
    return half_powers(eight_integers(each));
}

static const uint8_t E2M1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0}; /* twice the value, plus 12 */
static const uint8_t SIXTEEN[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

#define STEPS(name) STEP void name##_steps(const uint8_t *at, size_t count, Steps *out)
#define CODES(name) STEP Unsigned name##_codes(const uint8_t *at, size_t i)

#define BLOCKS_OF_32(name, bytes, numbers, unpacked) \
    STEPS(name)                                      \
    {                                                \
        numbers;                                     \
    }                                                \
    CODES(name)                                      \
    {                                                \
        const uint8_t *block = at + i * bytes;       \
        return unpacked;                             \
    }

#define SCALES(bytes) out->scales[0] = block_halves(at, bytes, 1, count)
#define PAIRS(bytes) put_block_pairs(at, bytes, count, out)

BLOCKS_OF_32(q4_0, 18, SCALES(18), nibbles_of(block + 2))
BLOCKS_OF_32(q4_1, 20, PAIRS(20), nibbles_of(block + 4))
BLOCKS_OF_32(q5_0, 22, SCALES(22), nibbles_of(block + 6) | codes_of_bits(block + 2, 16))
BLOCKS_OF_32(q5_1, 24, PAIRS(24), nibbles_of(block + 8) | codes_of_bits(block + 4, 16))
BLOCKS_OF_32(q8_0, 34, SCALES(34), load_block(block + 2) ^ 128)
BLOCKS_OF_32(iq4_nl, 18, SCALES(18), looked_up(SIXTEEN, nibbles_of(block + 2)))
BLOCKS_OF_32(mxfp4, 17, out->scales[0] = block_half_powers(at, 17, count), looked_up(E2M1, nibbles_of(block + 1)))

STEPS(q2_k)
{
    Eight d = all(half_at(at + 80)), dmin = all(half_at(at + 82));
    const uint64_t mask = 0x0f0f0f0f0f0f0f0f;
    for (int i = 0; i < 2; i++) {
        uint64_t both = word_at(at + 8 * i);
        out->scales[i] = d * byte_floats(both & mask), out->biases[i] = -(dmin * byte_floats(both >> 4 & mask));
    }
}

CODES(q2_k)
{
    return shifted(load_block(at + 16 + i / 4 * 32), i % 4 * 2) & 3;
}

STEPS(q3_k)
{
    Eight d = all(half_at(at + 108));
    uint64_t low = word_at(at + 96);
    uint32_t high = short_word_at(at + 104); /* the upper two bits of a scale: of the first four are the lowest ones */
    for (int i = 0; i < 2; i++, low >>= 4, high >>= 4) {
        uint64_t upper = (high & 0x03030303) | (uint64_t)(high >> 2 & 0x03030303) << 32;
        out->scales[i] = d * (byte_floats((low & 0x0f0f0f0f0f0f0f0f) | upper << 4) - 32);
    }
}

CODES(q3_k)
{
    return (shifted(load_block(at + 32 + i / 4 * 32), i % 4 * 2) & 3) | (shifted(load_block(at), i) & 1) << 2;
}

/* Unpacks the 6-bit scales and minima of q4_k and q5_k, and multiplies them with those of the block. */
STEP void put_scales_and_minima(const uint8_t *at, Steps *out)
{
    uint32_t a = short_word_at(at + 4), b = short_word_at(at + 8), c = short_word_at(at + 12);
    uint32_t later = (c & 0x0f0f0f0f) | (a >> 6 & 0x03030303) << 4, later_minima = (c >> 4 & 0x0f0f0f0f) | (b >> 6 & 0x03030303) << 4;
    out->scales[0] = all(half_at(at)) * byte_floats((a & 0x3f3f3f3f) | (uint64_t)later << 32);
    out->biases[0] = -(all(half_at(at + 2)) * byte_floats((b & 0x3f3f3f3f) | (uint64_t)later_minima << 32));
}

STEPS(q4_k)
{
    put_scales_and_minima(at, out);
}

CODES(q4_k)
{
    return shifted(load_block(at + 16 + i / 2 * 32), i % 2 * 4) & 15;
}

STEPS(q5_k)
{
    put_scales_and_minima(at, out);
}

CODES(q5_k)
{
    return (shifted(load_block(at + 48 + i / 2 * 32), i % 2 * 4) & 15) | (shifted(load_block(at + 16), i) & 1) << 4;
}

STEPS(q6_k)
{
    for (int i = 0; i < 2; i++)
        out->scales[i] = all(half_at(at + 208)) * floats_of((const int8_t *)at + 192 + 8 * i);
}

CODES(q6_k)
{
    Unsigned low = load_block(at + i / 4 * 64 + i % 2 * 32), high = load_block(at + 128 + i / 4 * 32);
    return (shifted(low, i % 4 / 2 * 4) & 15) | (shifted(high, i % 4 * 2) & 3) << 4;
}

STEPS(iq4_xs)
{
    uint64_t low = short_word_at(at + 4), high = short_word_at(at) >> 16;
    low = (low | low << 16) & 0x0000ffff0000ffff, high = (high | high << 24) & 0x000000ff000000ff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff, high = (high | high << 12) & 0x000f000f000f000f;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f, high = (high | high << 6) & 0x0303030303030303;
    out->scales[0] = all(half_at(at)) * (byte_floats(low | high << 4) - 32);
}

CODES(iq4_xs)
{
    return looked_up(SIXTEEN, nibbles_of(at + 8 + i * 16));
}

STEPS(nvfp4)
{
    uint64_t each[2] = {0};
#pragma GCC unroll 4
    for (size_t i = 0; i < STRETCH / 2; i++)
        if (i < count / 2)
            each[i / 2] |= (uint64_t)short_word_at(at + 36 * i) << (i % 2 * 32);
    for (int i = 0; i < 2; i++) {
        Whole none = eight_integers(each[i]) == 0x7f;
        out->scales[i] = (Eight)((Whole)(positive_e4m3(each[i]) * 0.5f) & ~none);
    }
}

CODES(nvfp4)
{
    return looked_up(E2M1, nibbles_of_halves(at + i / 2 * 36 + 4 + i % 2 * 16));
}

STEPS(q1_0)
{
    out->scales[0] = block_halves(at, 18, 4, count);
}

CODES(q1_0)
{
    return codes_of_bits(at + i / 4 * 18 + 2 + i % 4 * 4, 2);
}

STEPS(q2_0)
{
    out->scales[0] = block_halves(at, 18, 2, count);
}

CODES(q2_0)
{
    return codes_of(2, at + i / 2 * 18 + 2 + i % 2 * 8);
}

STEPS(tq2_0)
{
    out->scales[0] = all(half_at(at + 64));
}

CODES(tq2_0)
{
    return shifted(load_block(at + i / 4 * 32), i % 4 * 2) & 3;
}
