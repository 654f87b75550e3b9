/* Loads, rounds and stores weights of three dtypes, and codes, eight at a time in float32; all other files use it.
 *
 * For AVX2; float operations must not be contracted: compile with -ffp-contract=off.
 */
#pragma once
#include "numbers.h"
#include <immintrin.h>

#define VECTORS __attribute__((target("avx2,fma,f16c")))
#define INLINE VECTORS static inline __attribute__((always_inline))

enum { AHEAD = 1024 }; /* bytes prefetched where memory is read in one stream */

/* Loads eight values from element i on, in float32. */
INLINE __m256 load(Source source, const void *values, size_t i)
{
    if (source == F32)
        return _mm256_loadu_ps((const float *)values + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)values + i));
    if (source == F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Loads eight 8-bit integers, in float32. */
INLINE __m256 load_codes(const int8_t *codes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
}

/* Rounds values to float16, to nearest with ties to even, and converts them back to float32. */
INLINE __m256 through_half(__m256 values)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}

/* Rounds eight values to a dtype, to nearest with ties to even, and converts them back to float32. */
INLINE __m256 rounded(Source to, __m256 values)
{
    if (to == F32)
        return values;
    if (to == F16)
        return through_half(values);
    __m256i bits = _mm256_castps_si256(values);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 whole = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000)));
    /* NaN stays NaN: rounding must not carry it into another exponent. */
    return _mm256_blendv_ps(whole, _mm256_set1_ps(__builtin_nanf("")), _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
}

/* Narrows eight values that were rounded to F16 or BF16 to that dtype. */
INLINE __m128i in_16_bits(Source to, __m256 values)
{
    if (to == F16)
        return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(values), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

/* Stores the first ``count`` of eight values, rounded to a dtype, from element i on. */
INLINE void store(Source to, __m256 values, void *out, size_t i, size_t count)
{
    float wide[8];
    uint16_t half[8];
    if (to == F32)
        _mm256_storeu_ps(wide, values);
    else
        _mm_storeu_si128((__m128i *)half, in_16_bits(to, rounded(to, values)));
    memcpy((char *)out + i * width(to), to == F32 ? (void *)wide : half, (count < 8 ? count : 8) * width(to));
}

/* Loads ``count`` numbers, at most eight, and zeros for the rest. */
INLINE __m256 load_some(const UnalignedFloat *values, size_t count)
{
    float some[8] = {0};
    if (count >= 8)
        return _mm256_loadu_ps(values);
    memcpy(some, values, count * 4);
    return _mm256_loadu_ps(some);
}

/* Loads eight values rounded to float16, as int8 encodes them. */
INLINE __m256 load_half(Source source, const void *values, size_t i)
{
    __m256 loaded = load(source, values, i);
    return source == F16 ? loaded : through_half(loaded);
}

/* Returns the bits of magnitudes, to be compared as integers: a NaN is then the largest of all, and not lost. */
INLINE __m256i magnitudes(__m256 values)
{
    return _mm256_and_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x7fffffff));
}

/* Returns the larger of ``top`` and the magnitudes of eight values rounded to float16, lane by lane. */
INLINE __m256i half_top(Source source, const void *values, size_t i, __m256i top)
{
    return _mm256_max_epu32(top, magnitudes(load_half(source, values, i)));
}

INLINE float sum_of_eight(__m256 lanes)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
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
