/* Decodes stretches of formats whose codes are floats, or the numbers of values in a codebook. */
#pragma once
#include "packed_groups.h"

#define VALUES_OF(name) \
    STEP void name##_values(const Weight *weight, size_t row, size_t block, size_t count, Eight *values)

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

VALUES_OF(e4m3)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = codes_at(weight, row, block, count, 8, 0, end);
    Steps steps;
    const float *scales = (const float *)steps.scales;
    Unsigned none = {0};
    put_steps(weight, row, block, count, &steps);
    for (size_t i = 0; i < 2 * count; i++)
        /* Without the second highest bit, these are float16s that are 256 times smaller. */
        put_halves(signed_bytes(at + 16 * i) << 7 & 0xbfff, all(scales[i] * 256), values + 2 * i);
    for (size_t i = 0; i < count; i++)
        none |= (Unsigned)((load_block(at + 32 * i) & 0x7f) == 0x7f);
    Words any = (Words)none;
    if (any[0] | any[1] | any[2] | any[3])
        for (size_t i = 0; i < count * BLOCK; i++)
            if ((at[i] & 0x7f) == 0x7f)
                ((float *)values)[i] = __builtin_nanf("");
}

VALUES_OF(e5m2)
{
    uint8_t end[STRETCH * BLOCK + SLACK];
    const uint8_t *at = codes_at(weight, row, block, count, 8, 0, end);
    Steps steps;
    const float *scales = (const float *)steps.scales;
    put_steps(weight, row, block, count, &steps);
    for (size_t i = 0; i < 2 * count; i++)
        put_halves(signed_bytes(at + 16 * i) << 8, all(scales[i]), values + 2 * i);
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

#define CODEBOOK(name, bits)                                                                      \
    VALUES_OF(name)                                                                               \
    {                                                                                             \
        uint8_t end[STRETCH * BLOCK + SLACK];                                                     \
        const uint8_t *at = codes_at(weight, row, block, count, bits, SLACK, end);                \
        Steps steps;                                                                              \
        const float *scales = (const float *)steps.scales;                                        \
        if (weight->scale_type != NO_NUMBER)                                                      \
            put_steps(weight, row, block, count, &steps);                                         \
        for (size_t i = 0; i < count; i++, at += 4 * bits) {                                      \
            Unsigned codes = codes_from_the_top(bits, at);                                        \
            for (int k = 0; k < 4; k++)                                                           \
                values[4 * i + k] = in_book(bits, weight->book, (uint8_t *)&codes + 8 * k);       \
            if (weight->scale_type != NO_NUMBER)                                                  \
                for (int k = 0; k < 4; k++)                                                       \
                    values[4 * i + k] *= all(scales[2 * i + k / 2]);                              \
        }                                                                                         \
    }

CODEBOOK(book2, 2)
CODEBOOK(book3, 3)
CODEBOOK(book4, 4)
CODEBOOK(book5, 5)
CODEBOOK(book6, 6)
CODEBOOK(book7, 7)
CODEBOOK(book8, 8)

