/* Unpacks codes of a few bits to bytes, and small numbers to floats; all that knows formats uses it. */
#pragma once
#include "packed_primitives.h"

enum { SLACK = 8 }; /* bytes that may be read after codes */

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

/* Half of a power of two, 2^(e - 127), whatever the byte is. */
STEP Eight half_powers(Whole e)
{
    Whole least = e < 2;
    return (Eight)((least & (0x200000 << (e & 1))) | (~least & (e - 1) << 23));
}

/* The values of f8_e4m3 without sign: the bits of a float16 that is 256 times smaller. */
STEP Eight positive_e4m3(uint64_t bytes)
{
    return eight_halves((eight_bytes(bytes) & 0x7f) << 7) * 256;
}

/* Spreads 16 bytes to 32 codes: first the lower nibbles, then the upper ones. */
STEP Unsigned nibbles_of(const uint8_t *from)
{
    Half bytes = load_half_block(from);
    return (Unsigned)((Words)joined(bytes, bytes) >> (Words){0, 0, 4, 4}) & 15;
}

/* Spreads 16 bytes to 32 codes, those of each eight together. */
STEP Unsigned nibbles_of_halves(const uint8_t *from)
{
    uint64_t first = word_at(from), second = word_at(from + 8);
    return (Unsigned)((Words){first, first, second, second} >> (Words){0, 4, 0, 4}) & 15;
}

/* Spreads 32 bits to 32 codes: ``code`` where a bit is set, else 0. */
STEP Unsigned codes_of_bits(const uint8_t *from, uint8_t code)
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
    return (Unsigned)((bytes & bit) == bit) & code;
}

typedef uint16_t WideBits __attribute__((vector_size(32)));

/* Shifts bytes to the right by less than 8 bits. What comes in from above belongs to other bytes, and is to be masked. */
STEP Unsigned shifted(Unsigned bytes, size_t bits)
{
    return (Unsigned)((WideBits)bytes >> (int)bits);
}

/* Widens 16 bytes to 16 bits each. */
STEP WideBits wide_bytes(const uint8_t *from)
{
#if USE_AVX2
    return (WideBits)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
    return __builtin_convertvector(load_half_block(from), WideBits);
#endif
}

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

/* Loads 32 codes of ``bits`` bits, packed from the lowest bits up; of 3, 5 or 6 bits reads up to SLACK bytes more. */
STEP Unsigned codes_of(int bits, const uint8_t *from)
{
    if (bits == 1)
        return codes_of_bits(from, 1);
    if (bits == 2) {
        uint64_t word = word_at(from);
        return spread(2, &(Words){word, word >> 16, word >> 32, word >> 48});
    }
    if (bits == 4) /* bytes are widened to 16 bits, and one nibble is moved up */
        return (Unsigned)(wide_bytes(from) | wide_bytes(from) << 4) & 15;
    if (bits == 8)
        return load_block(from);
    Words words = {word_at(from), word_at(from + bits), word_at(from + 2 * bits), word_at(from + 3 * bits)};
    return spread(bits, &words);
}

/* Loads 32 codes of ``bits`` bits that are packed from the highest bits down; reads up to SLACK bytes more. */
STEP Unsigned codes_from_the_top(int bits, const uint8_t *from)
{
    if (bits == 8)
        return load_block(from);
    if (bits == 4)
        return (Unsigned)(wide_bytes(from) >> 4 | wide_bytes(from) << 8) & 15;
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
