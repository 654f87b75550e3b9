/* Decodes stretches of rows: a function for each format, all of which do as the schemes' numpy code does.
 *
 * ``block`` is the first of ``count`` blocks of 32 columns, 8 times a whole number.
 */
#pragma once
#include "packed_primitives.h"

#define DECODER(name) \
    TARGET static void decode_##name(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out)

typedef uint64_t Words __attribute__((vector_size(32)));
typedef uint16_t HalfBits __attribute__((vector_size(16)));

STEP Eight eight_halves(HalfBits bits)
{
    return load_eight(F16, &bits);
}

/* Replaces the i-th of eight numbers of 16 bits; i is a constant. */
STEP HalfBits with_half(HalfBits bits, int i, const uint8_t *from)
{
    uint16_t half;
    memcpy(&half, from, 2);
#if USE_AVX2
    switch (i) { /* compilers that see all eight at once do without vpinsrw, and more slowly */
    case 0: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 0);
    case 1: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 1);
    case 2: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 2);
    case 3: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 3);
    case 4: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 4);
    case 5: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 5);
    case 6: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 6);
    default: return (HalfBits)_mm_insert_epi16((__m128i)bits, half, 7);
    }
#else
    bits[i] = half;
    return bits;
#endif
}

/* Replaces the i-th of four pairs. */
STEP HalfBits with_pair(HalfBits bits, int i, const uint8_t *from)
{
    uint32_t pair;
    memcpy(&pair, from, 4);
#if USE_AVX2
    switch (i) {
    case 0: return (HalfBits)_mm_insert_epi32((__m128i)bits, (int)pair, 0);
    case 1: return (HalfBits)_mm_insert_epi32((__m128i)bits, (int)pair, 1);
    case 2: return (HalfBits)_mm_insert_epi32((__m128i)bits, (int)pair, 2);
    default: return (HalfBits)_mm_insert_epi32((__m128i)bits, (int)pair, 3);
    }
#else
    bits[2 * i] = (uint16_t)pair, bits[2 * i + 1] = (uint16_t)(pair >> 16);
    return bits;
#endif
}

STEP HalfBits eight_bytes(uint64_t bytes)
{
#if USE_AVX2
    return (HalfBits)_mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)bytes));
#else
    HalfBits wide;
    for (int i = 0; i < 8; i++)
        wide[i] = bytes >> 8 * i & 255;
    return wide;
#endif
}

STEP Whole eight_integers(uint64_t bytes)
{
#if USE_AVX2
    return (Whole)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
#else
    Whole wide;
    for (int i = 0; i < 8; i++)
        wide[i] = bytes >> 8 * i & 255;
    return wide;
#endif
}

STEP Eight byte_floats(uint64_t bytes)
{
    return to_floats(eight_integers(bytes));
}

STEP uint64_t word_at(const uint8_t *from)
{
    uint64_t word;
    memcpy(&word, from, 8);
    return word;
}

STEP uint32_t short_word_at(const uint8_t *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

/* Gives both halves of each of eight blocks the number of the block. */
STEP void put_each(Eight numbers, Eight halves[2])
{
    halves[0] = selected(numbers, (Whole){0, 0, 1, 1, 2, 2, 3, 3});
    halves[1] = selected(numbers, (Whole){4, 4, 5, 5, 6, 6, 7, 7});
}

/* Blocks of GGML with their scales inside: schemes/ggml.py. */

STEP const uint8_t *blocks_at(const Weight *weight, size_t row, size_t place, size_t bytes)
{
    return weight->codes + row * weight->row_bytes + place * bytes;
}

/* Loads the float16 of each of ``count`` blocks. */
STEP Eight block_halves(const uint8_t *at, size_t bytes, size_t count)
{
    HalfBits bits = {0};
#pragma GCC unroll 8
    for (size_t i = 0; i < STRETCH; i++)
        if (i < count)
            bits = with_half(bits, (int)i, at + i * bytes);
    return eight_halves(bits);
}

/* Loads the two float16 that each of ``count`` blocks begins with: a scale and a bias. */
STEP void put_block_pairs(const uint8_t *at, size_t bytes, size_t count, Stretch *out)
{
    for (int i = 0; i < 2; i++) {
        HalfBits bits = {0};
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            if (4 * i + k < count)
                bits = with_pair(bits, (int)k, at + (4 * i + k) * bytes);
        Eight pairs = eight_halves(bits);
        out->scales[i] = selected(pairs, (Whole){0, 0, 2, 2, 4, 4, 6, 6});
        out->biases[i] = selected(pairs, (Whole){1, 1, 3, 3, 5, 5, 7, 7});
    }
}

/* Half of a power of two, 2^(e - 127), whatever the byte is. */
STEP Eight half_powers(Whole e)
{
    Whole least = e < 2;
    return (Eight)((least & (0x200000 << (e & 1))) | (~least & (e - 1) << 23));
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

/* Spreads 16 bytes to 32 codes: first the lower nibbles, then the upper ones. */
STEP Unsigned nibbles_of(const uint8_t *from)
{
    Half bytes = load_half_block(from);
    return joined(bytes & 15, bytes >> 4 & 15);
}

/* Spreads 32 bits to 32 codes: 16 where a bit is set, else 0. */
STEP Unsigned fifth_bits(const uint8_t *from)
{
    const Unsigned bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                          1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
#if USE_AVX2
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    Unsigned bytes = (Unsigned)_mm256_shuffle_epi8(_mm256_set1_epi32((int)short_word_at(from)), byte);
#else
    Unsigned bytes;
    for (int i = 0; i < 32; i++)
        bytes[i] = from[i / 8];
#endif
    return (Unsigned)((bytes & bit) == bit) & 16;
}

static const uint8_t SIXTEEN[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t E2M1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0}; /* twice the value, plus 12 */

#define BLOCKS_OF_32(name, bytes, unpacked, numbers)                                 \
    STEP void name##_blocks(const uint8_t *first, size_t count, Stretch *out)             \
    {                                                                                     \
        numbers;                                                                          \
        for (size_t i = 0; i < count; i++) {                                              \
            const uint8_t *at = first + i * bytes;                                        \
            out->codes[i] = unpacked;                                                     \
        }                                                                                 \
    }                                                                                     \
    DECODER(name)                                                                         \
    {                                                                                     \
        const uint8_t *first = blocks_at(weight, row, block, bytes);                      \
        if (count == STRETCH)                                                             \
            name##_blocks(first, STRETCH, out);                                           \
        else                                                                              \
            name##_blocks(first, count, out);                                             \
    }

#define SCALES(bytes) put_each(block_halves(first, bytes, count), out->scales)
#define PAIRS(bytes) put_block_pairs(first, bytes, count, out)

BLOCKS_OF_32(q4_0, 18, nibbles_of(at + 2), SCALES(18))
BLOCKS_OF_32(q4_1, 20, nibbles_of(at + 4), PAIRS(20))
BLOCKS_OF_32(q5_0, 22, nibbles_of(at + 6) | fifth_bits(at + 2), SCALES(22))
BLOCKS_OF_32(q5_1, 24, nibbles_of(at + 8) | fifth_bits(at + 4), PAIRS(24))
BLOCKS_OF_32(q8_0, 34, load_block(at + 2) ^ 128, SCALES(34))
BLOCKS_OF_32(iq4_nl, 18, looked_up(SIXTEEN, nibbles_of(at + 2)), SCALES(18))
BLOCKS_OF_32(mxfp4, 17, looked_up(E2M1, nibbles_of(at + 1)), put_each(block_half_powers(first, 17, count), out->scales))

DECODER(q2_k)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 84), *codes = at + 16;
    Eight d = all(half_at(at + 80)), dmin = all(half_at(at + 82));
    const uint64_t mask = 0x0f0f0f0f0f0f0f0f;
    for (int i = 0; i < 2; i++) {
        uint64_t both = word_at(at + 8 * i);
        out->scales[i] = d * byte_floats(both & mask), out->biases[i] = -(dmin * byte_floats(both >> 4 & mask));
        Unsigned bytes = load_block(codes + 32 * i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            out->codes[4 * i + k] = bytes >> 2 * k & 3;
    }
}

DECODER(q3_k)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 110), *codes = at + 32;
    Eight d = all(half_at(at + 108));
    Unsigned mask = load_block(at);
    uint64_t low = word_at(at + 96);
    uint32_t high = short_word_at(at + 104); /* the upper two bits of a scale: of the first four are the lowest ones */
    for (int i = 0; i < 2; i++, low >>= 4, high >>= 4) {
        uint64_t upper = (high & 0x03030303) | (uint64_t)(high >> 2 & 0x03030303) << 32;
        out->scales[i] = d * (byte_floats((low & 0x0f0f0f0f0f0f0f0f) | upper << 4) - 32);
        Unsigned bytes = load_block(codes + 32 * i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            out->codes[4 * i + k] = (bytes >> 2 * k & 3) | (mask >> (4 * i + k) & 1) << 2;
    }
}

/* Unpacks the 6-bit scales and minima of q4_k and q5_k, and multiplies them with those of the block. */
STEP void put_scales_and_minima(const uint8_t *at, Stretch *out)
{
    uint32_t a = short_word_at(at + 4), b = short_word_at(at + 8), c = short_word_at(at + 12);
    uint32_t later = (c & 0x0f0f0f0f) | (a >> 6 & 0x03030303) << 4, later_minima = (c >> 4 & 0x0f0f0f0f) | (b >> 6 & 0x03030303) << 4;
    put_each(all(half_at(at)) * byte_floats((a & 0x3f3f3f3f) | (uint64_t)later << 32), out->scales);
    put_each(-(all(half_at(at + 2)) * byte_floats((b & 0x3f3f3f3f) | (uint64_t)later_minima << 32)), out->biases);
}

DECODER(q4_k)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 144);
    put_scales_and_minima(at, out);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        Unsigned bytes = load_block(at + 16 + i * 32);
        out->codes[2 * i] = bytes & 15, out->codes[2 * i + 1] = bytes >> 4 & 15;
    }
}

DECODER(q5_k)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 176);
    Unsigned fifth = load_block(at + 16);
    put_scales_and_minima(at, out);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        Unsigned bytes = load_block(at + 48 + i * 32);
        out->codes[2 * i] = (bytes & 15) | (fifth >> 2 * i & 1) << 4;
        out->codes[2 * i + 1] = (bytes >> 4 & 15) | (fifth >> (2 * i + 1) & 1) << 4;
    }
}

DECODER(q6_k)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 210);
    Eight d = all(half_at(at + 208));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        Unsigned first = load_block(at + 64 * i), second = load_block(at + 64 * i + 32), high = load_block(at + 128 + 32 * i);
        out->scales[i] = d * floats_of((const int8_t *)at + 192 + 8 * i);
        out->codes[4 * i] = (first & 15) | (high & 3) << 4;
        out->codes[4 * i + 1] = (second & 15) | (high >> 2 & 3) << 4;
        out->codes[4 * i + 2] = (first >> 4 & 15) | (high >> 4 & 3) << 4;
        out->codes[4 * i + 3] = (second >> 4 & 15) | (high >> 6 & 3) << 4;
    }
}

DECODER(iq4_xs)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 136);
    uint64_t low = short_word_at(at + 4), high = short_word_at(at) >> 16;
    low = (low | low << 16) & 0x0000ffff0000ffff, high = (high | high << 24) & 0x000000ff000000ff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff, high = (high | high << 12) & 0x000f000f000f000f;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f, high = (high | high << 6) & 0x0303030303030303;
    put_each(all(half_at(at)) * (byte_floats(low | high << 4) - 32), out->scales);
    for (int i = 0; i < 8; i++)
        out->codes[i] = looked_up(SIXTEEN, nibbles_of(at + 8 + i * 16));
}

/* The values of f8_e4m3 without sign: the bits of a float16 that is 256 times smaller. */
STEP Eight positive_e4m3(uint64_t bytes)
{
    return eight_halves((eight_bytes(bytes) & 0x7f) << 7) * 256;
}

DECODER(nvfp4)
{
    const uint8_t *at = blocks_at(weight, row, block / 2, 36);
    const uint64_t mask = 0x0f0f0f0f0f0f0f0f;
    uint64_t each[2] = {0};
    for (size_t i = 0; i < count / 2; i++)
        each[i / 2] |= (uint64_t)short_word_at(at + 36 * i) << (i % 2 * 32);
    for (int i = 0; i < 2; i++) {
        Whole none = eight_integers(each[i]) == 0x7f;
        out->scales[i] = (Eight)((Whole)(positive_e4m3(each[i]) * 0.5f) & ~none);
    }
    for (size_t i = 0; i < count; i++) {
        /* Eight lower nibbles, eight upper ones, and the same of the next eight bytes. */
        const uint8_t *from = at + i / 2 * 36 + 4 + i % 2 * 16;
        uint64_t first = word_at(from), second = word_at(from + 8);
        Words codes = {first & mask, first >> 4 & mask, second & mask, second >> 4 & mask};
        out->codes[i] = looked_up(E2M1, (Unsigned)codes);
    }
}

/* Codes in rows, packed from the lowest bits up: schemes/packing.py. */

/* Spreads eight codes of ``bits`` bits in each word to its eight bytes, the lowest first. */
STEP Unsigned spread(int bits, const Words *from)
{
    Words words = *from;
    const uint64_t four = (1ull << (4 * bits & 63)) - 1, two = ((1ull << 2 * bits) - 1) * 0x0000000100000001;
    const uint64_t one = ((1ull << bits) - 1) * 0x0001000100010001;
    if (bits == 8)
        return (Unsigned)words;
    words = (words & four) | (words << (32 - 4 * bits) & four << 32);
    words = (words & two) | (words << (16 - 2 * bits) & two << 16);
    return (Unsigned)((words & one) | (words << (8 - bits) & one << 8));
}

/* Loads 32 codes of ``bits`` bits; reads up to SLACK bytes more. */
STEP Unsigned codes_of(int bits, const uint8_t *from)
{
    if (bits == 8)
        return load_block(from);
    if (bits == 4) { /* bytes are widened to 16 bits, and one nibble is moved up */
        typedef uint16_t Wide __attribute__((vector_size(32)));
#if USE_AVX2
        Wide wide = (Wide)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
        Wide wide = __builtin_convertvector(load_half_block(from), Wide);
#endif
        return (Unsigned)((wide | wide << 4) & 0x0f0f);
    }
    Words words = {word_at(from), word_at(from + bits), word_at(from + 2 * bits), word_at(from + 3 * bits)};
    return spread(bits, &words);
}

/* Loads 32 codes of ``bits`` bits that are packed from the highest bits down; reads up to SLACK bytes more. */
STEP Unsigned codes_from_the_top(int bits, const uint8_t *from)
{
    if (bits == 8)
        return load_block(from);
    if (bits == 4) {
        typedef uint16_t Wide __attribute__((vector_size(32)));
        Wide codes = (Wide)codes_of(4, from);
        return (Unsigned)(codes >> 8 | codes << 8);
    }
    Words words;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        words[i] = __builtin_bswap64(word_at(from + bits * i)) >> (64 - 8 * bits);
    Unsigned codes = spread(bits, &words); /* the last of eight in the lowest byte */
#if USE_AVX2
    const __m256i turn = _mm256_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8,
                                          7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
    return (Unsigned)_mm256_shuffle_epi8((__m256i)codes, turn);
#else
    for (int i = 0; i < 4; i++)
        words[i] = __builtin_bswap64(((Words)codes)[i]);
    return (Unsigned)words;
#endif
}

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

/* Fills in the scales and biases of a stretch whose scales lie aside. */
STEP void put_steps(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out)
{
    size_t first = row / weight->block_rows * weight->groups, units = weight->group / 16, unit = 2 * block;
    Eight scales, biases;
    const Eight lane = {0, 1, 2, 3, 4, 5, 6, 7};
    if (units == 1) {
        steps_at(weight, first + unit, &out->scales[0], &out->biases[0]);
        steps_at(weight, first + unit + 8, &out->scales[1], &out->biases[1]);
    } else {
        size_t at = units ? unit / units : 0, phase = units ? unit % units : 0;
        steps_at(weight, first + at, &scales, &biases);
        for (int i = 0; i < 2; i++) {
            /* The half keeps the quotient of whole numbers away from the next one, whatever the rounding. */
            Eight place = (lane + (float)(8 * i + phase) + 0.5f) * (units ? 1 / (float)units : 0);
            Whole index = __builtin_convertvector(place, Whole);
            out->scales[i] = selected(scales, index), out->biases[i] = selected(biases, index);
        }
    }
    if (count < STRETCH) /* what follows are numbers of the next row, or none */
        for (int i = 0; i < 2; i++) {
            Whole here = lane + (float)(8 * i) < (float)((weight->columns + 15) / 16 - unit);
            out->scales[i] = (Eight)((Whole)out->scales[i] & here), out->biases[i] = (Eight)((Whole)out->biases[i] & here);
        }
}

enum { SLACK = 8 }; /* bytes that may be read after codes */

/* Returns where the codes of a stretch lie: in the weight, or in ``end`` with zeros after those of the row. */
STEP const uint8_t *codes_at(const Weight *weight, size_t row, size_t block, size_t count, int bits,
                             uint8_t end[STRETCH * BLOCK + SLACK])
{
    const uint8_t *codes = weight->codes + row * weight->row_bytes + block * 4 * bits;
    size_t left = weight->row_bytes - block * 4 * bits, wanted = count * 4 * bits;
    if (left >= wanted + (bits % 4 ? SLACK : 0))
        return codes;
    memset(end + wanted, 0, SLACK);
    if (left < wanted)
        memset(end + left, 0, wanted - left);
    memcpy(end, codes, left < wanted ? left : wanted);
    return end;
}

#define GROUPED(name, bits, unpacked)                                                       \
    STEP void name##_codes(const uint8_t *at, size_t count, Stretch *out)                   \
    {                                                                                       \
        for (size_t i = 0; i < count; i++, at += 4 * bits)                                  \
            out->codes[i] = unpacked;                                                       \
    }                                                                                       \
    DECODER(name)                                                                           \
    {                                                                                       \
        uint8_t end[STRETCH * BLOCK + SLACK];                                               \
        put_steps(weight, row, block, count, out);                                                 \
        name##_codes(codes_at(weight, row, block, count, bits, end), count, out);           \
    }

GROUPED(u1, 1, codes_of(1, at))
GROUPED(u2, 2, codes_of(2, at))
GROUPED(u3, 3, codes_of(3, at))
GROUPED(u4, 4, codes_of(4, at))
GROUPED(u5, 5, codes_of(5, at))
GROUPED(u6, 6, codes_of(6, at))
GROUPED(u8, 8, codes_of(8, at))
GROUPED(s8, 8, codes_of(8, at) ^ 128)
GROUPED(nibbles, 4, codes_from_the_top(4, at))
GROUPED(e2m1, 4, looked_up(E2M1, codes_of(4, at)))

/* The same in GGML's blocks of one and two bits. */

DECODER(q1_0)
{
    Eight scales = {0};
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = blocks_at(weight, row, (block + i) / 4, 18);
        uint8_t four[4 + SLACK] = {0};
        memcpy(four, at + 2 + i % 4 * 4, 4);
        out->codes[i] = codes_of(1, four) * 2, scales[i] = half_at(at);
    }
    put_each(scales, out->scales);
}

DECODER(q2_0)
{
    Eight scales = {0};
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = blocks_at(weight, row, (block + i) / 2, 18);
        uint8_t eight[8 + SLACK] = {0};
        memcpy(eight, at + 2 + i % 2 * 8, 8);
        out->codes[i] = codes_of(2, eight), scales[i] = half_at(at);
    }
    put_each(scales, out->scales);
}

DECODER(tq2_0)
{
    const uint8_t *at = blocks_at(weight, row, block / 8, 66);
    out->scales[0] = out->scales[1] = all(half_at(at + 64));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        out->codes[i] = load_block(at + i / 4 * 32) >> (i % 4 * 2) & 3;
}

/* Values. */

typedef uint16_t WideBits __attribute__((vector_size(32)));

/* Widens 16 bytes to 16 bits each, with their sign in the upper byte. */
STEP WideBits signed_bytes(const uint8_t *from)
{
#if USE_AVX2
    return (WideBits)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
    WideBits wide;
    for (int i = 0; i < 16; i++)
        wide[i] = (uint16_t)(int8_t)from[i];
    return wide;
#endif
}

/* Converts 16 float16, and multiplies them. */
STEP void put_halves(WideBits bits, Eight scale, Eight values[2])
{
    HalfBits half[2];
    memcpy(half, &bits, 32);
    values[0] = eight_halves(half[0]) * scale, values[1] = eight_halves(half[1]) * scale;
}

DECODER(e4m3)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = codes_at(weight, row, block, count, 8, end);
    const float *scales = (const float *)out->scales;
    Unsigned none = {0};
    put_steps(weight, row, block, count, out);
    for (size_t i = 0; i < 2 * count; i++)
        /* Without the second highest bit, these are float16s that are 256 times smaller. */
        put_halves(signed_bytes(at + 16 * i) << 7 & 0xbfff, all(scales[i] * 256), out->values + 2 * i);
    for (size_t i = 0; i < count; i++)
        none |= (Unsigned)((load_block(at + 32 * i) & 0x7f) == 0x7f);
    Words any = (Words)none;
    if (any[0] | any[1] | any[2] | any[3])
        for (size_t i = 0; i < count * BLOCK; i++)
            if ((at[i] & 0x7f) == 0x7f)
                ((float *)out->values)[i] = __builtin_nanf("");
}

DECODER(e5m2)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = codes_at(weight, row, block, count, 8, end);
    const float *scales = (const float *)out->scales;
    put_steps(weight, row, block, count, out);
    for (size_t i = 0; i < 2 * count; i++)
        put_halves(signed_bytes(at + 16 * i) << 8, all(scales[i]), out->values + 2 * i);
}

/* Looks up eight codes in a codebook of 2^bits values. */
STEP Eight in_book(int bits, const UnalignedFloat *book, const uint8_t *codes)
{
#if USE_AVX2
    __m256i each = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
    if (bits > 4)
        return (Eight)_mm256_i32gather_ps((const float *)book, each, 4);
    if (bits == 2)
        return (Eight)_mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float *)book)), each);
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float *)book), each);
    if (bits == 3)
        return (Eight)low;
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float *)book + 8), each);
    return (Eight)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(each, 28)));
#else
    Eight values;
    for (int i = 0; i < 8; i++)
        values[i] = book[codes[i]];
    return values;
#endif
}

#define CODEBOOK(name, bits)                                                                 \
    DECODER(name)                                                                            \
    {                                                                                        \
        uint8_t end[STRETCH * BLOCK + SLACK];                                                \
        const uint8_t *at = codes_at(weight, row, block, count, bits, end);                  \
        for (size_t i = 0; i < count; i++, at += 4 * bits) {                                 \
            Unsigned codes = codes_from_the_top(bits, at);                                   \
            for (int k = 0; k < 4; k++)                                                      \
                out->values[4 * i + k] = in_book(bits, weight->book, (uint8_t *)&codes + 8 * k); \
        }                                                                                    \
    }

CODEBOOK(book2, 2)
CODEBOOK(book3, 3)
CODEBOOK(book4, 4)
CODEBOOK(book5, 5)
CODEBOOK(book6, 6)
CODEBOOK(book7, 7)
CODEBOOK(book8, 8)

typedef void Decoder(const Weight *weight, size_t row, size_t block, size_t count, Stretch *out);

#define FORMAT_DECODER(name, columns, bytes, form, offset) decode_##name,
static Decoder *const DECODERS[] = {FORMATS(FORMAT_DECODER)};
