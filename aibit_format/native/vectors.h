/* What all functions of vectors here begin with: weights of three dtypes, and codes, eight at a time in float32.
 *
 * For AVX2; float operations must not be contracted: compile with -ffp-contract=off.
 */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VECTORS __attribute__((target("avx2,fma,f16c")))
#define INLINE VECTORS static inline __attribute__((always_inline))

typedef enum { F16, BF16, F32 } Source;

static size_t width(Source source)
{
    return source == F32 ? 4 : 2;
}

/* Eight values from element i on, in float32. */
INLINE __m256 load(Source source, const void *values, size_t i)
{
    if (source == F32)
        return _mm256_loadu_ps((const float *)values + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)values + i));
    if (source == F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Eight whole numbers of 8 bits, in float32. */
INLINE __m256 load_codes(const int8_t *codes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
}

/* What int8 is made of: values that went through float16. */
INLINE __m256 load_half(Source source, const void *values, size_t i)
{
    __m256 loaded = load(source, values, i);
    if (source == F16)
        return loaded;
    return _mm256_cvtph_ps(_mm256_cvtps_ph(loaded, _MM_FROUND_TO_NEAREST_INT));
}

/* Bits of magnitudes, compared as whole numbers: so a NaN is the largest of all and not lost. */
INLINE __m256i magnitudes(__m256 values)
{
    return _mm256_and_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x7fffffff));
}

INLINE float largest_magnitude(__m256i bits)
{
    uint32_t each[8], top = 0;
    float value;
    _mm256_storeu_si256((__m256i *)each, bits);
    for (int i = 0; i < 8; i++)
        top = each[i] > top ? each[i] : top;
    memcpy(&value, &top, 4);
    return value;
}
