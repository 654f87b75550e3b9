/* Implements the steps that a kind of processor has instructions for: USE_AVX2, USE_VNNI, USE_DOTPROD or none of them.
 * Whoever includes this defines TARGET, the attribute of functions for it.
 */
#pragma once
#include "packed.h"
#if USE_AVX2
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to functions that are inlined */

#define STEP TARGET static inline __attribute__((always_inline))

STEP Eight all(float value)
{
    return (Eight){value, value, value, value, value, value, value, value};
}

STEP float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

STEP uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

STEP float half_bits(uint16_t bits)
{
#if USE_AVX2
    return _cvtsh_ss(bits);
#else
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00)
        return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400)
        return from_bits(sign | ((rest << 13) + (112u << 23)));
    float small = (float)rest * 0x1p-24f;
    return sign ? -small : small;
#endif
}

STEP float half_at(const uint8_t *at)
{
    uint16_t bits;
    memcpy(&bits, at, 2);
    return half_bits(bits);
}

/* Rounds to float16, to nearest with ties to even. */
STEP uint16_t to_half(float value)
{
#if USE_AVX2
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) /* 65520, which rounds to infinity, and more */
        return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) /* 2^-14: adding 0.5 leaves the multiples of 2^-24 in the lower bits */
        return (uint16_t)(sign | (bits_of(from_bits(rest) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | (((rest + 0xfff + (rest >> 13 & 1)) >> 13) - 0x1c000));
#endif
}

STEP uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    return value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

STEP void put_number(Source to, float value, void *out, size_t i)
{
    uint16_t half = to == F16 ? to_half(value) : to_bf16(value);
    if (to == F32)
        memcpy((char *)out + 4 * i, &value, 4);
    else
        memcpy((char *)out + 2 * i, &half, 2);
}

/* Loads eight values in float32. */
STEP Eight load_eight(Source source, const void *from)
{
    Eight values;
    if (source == F32) {
        memcpy(&values, from, 32);
        return values;
    }
#if USE_AVX2
    __m128i half = _mm_loadu_si128((const __m128i *)from);
    if (source == F16)
        return (Eight)_mm256_cvtph_ps(half);
    return (Eight)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
    uint16_t half[8];
    memcpy(half, from, 16);
    for (int i = 0; i < 8; i++)
        values[i] = source == F16 ? half_bits(half[i]) : from_bits((uint32_t)half[i] << 16);
    return values;
#endif
}

/* Stores eight values, rounded to nearest with ties to even. */
STEP void store_eight(Source to, Eight values, void *out)
{
    if (to == F32) {
        memcpy(out, &values, 32);
        return;
    }
#if USE_AVX2
    __m256i bits = (__m256i)values, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    if (to == F16) {
        _mm_storeu_si128((__m128i *)out, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
        return;
    }
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256 none = _mm256_cmp_ps((__m256)values, (__m256)values, _CMP_UNORD_Q);
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(none));
    __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    _mm_storeu_si128((__m128i *)out, half);
#else
    for (int i = 0; i < 8; i++)
        put_number(to, values[i], out, i);
#endif
}

STEP float sum_of(Eight v)
{
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

/* Multiplies and adds, with one rounding or two. */
STEP Eight fused(Eight a, Eight b, Eight c)
{
#if USE_AVX2
    return (Eight)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

STEP Half load_half_block(const uint8_t *from)
{
    Half bytes;
    memcpy(&bytes, from, 16);
    return bytes;
}

STEP Unsigned load_block(const uint8_t *from)
{
    Unsigned bytes;
    memcpy(&bytes, from, 32);
    return bytes;
}

STEP Unsigned joined(Half low, Half high)
{
#if USE_AVX2
    return (Unsigned)_mm256_set_m128i((__m128i)high, (__m128i)low);
#else
    Unsigned both;
    memcpy(&both, &low, 16);
    memcpy((char *)&both + 16, &high, 16);
    return both;
#endif
}

/* Looks up codes of four bits in a table of 16 values. */
STEP Unsigned looked_up(const uint8_t table[16], Unsigned codes)
{
#if USE_AVX2
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (Unsigned)_mm256_shuffle_epi8(both, (__m256i)codes);
#elif defined(__aarch64__)
    uint8x16_t values = vld1q_u8(table);
    Half low, high;
    memcpy(&low, &codes, 16);
    memcpy(&high, (char *)&codes + 16, 16);
    return joined((Half)vqtbl1q_u8(values, (uint8x16_t)low), (Half)vqtbl1q_u8(values, (uint8x16_t)high));
#else
    Unsigned found;
    for (int i = 0; i < 32; i++)
        found[i] = table[codes[i]];
    return found;
#endif
}

/* Converts eight codes to float32. */
STEP Eight floats_of(const int8_t *codes)
{
#if USE_AVX2
    return (Eight)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#else
    return (Eight){codes[0], codes[1], codes[2], codes[3], codes[4], codes[5], codes[6], codes[7]};
#endif
}

STEP Eight to_floats(Whole numbers)
{
    return __builtin_convertvector(numbers, Eight);
}

/* Whether inputs of 8 bits are multiplied with codes up to 255; if not, these are made numbers from -128 to 127. */
enum {
#if USE_VNNI
    WIDE_CODES = 1
#else
    WIDE_CODES = 0
#endif
};

/* Multiplies 32 codes with 32 of inputs, and adds: in lanes 0 to 3 products of the first 16, in lanes 4 to 7 the rest.
 * Codes are at most 127; if ``wide``, at most 255, and products are those of code - 128 unless there are WIDE_CODES. */
STEP Whole dot_i8(Unsigned codes, int wide, const int8_t *inputs)
{
#if USE_AVX2
    __m256i values = _mm256_loadu_si256((const __m256i *)inputs), weights = (__m256i)codes;
#if USE_VNNI
    return (Whole)_mm256_dpbusd_epi32(_mm256_setzero_si256(), weights, values);
#else
    if (wide) {
        weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
        values = _mm256_sign_epi8(values, weights), weights = _mm256_abs_epi8(weights);
    }
    /* 128 * 127 * 2 is less than 2^15: nothing saturates. */
    return (Whole)_mm256_madd_epi16(_mm256_maddubs_epi16(weights, values), _mm256_set1_epi16(1));
#endif
#else
    Whole sums;
    Bytes weights = (Bytes)(wide ? codes ^ 128 : codes);
#if USE_DOTPROD
    const int8_t *at = (const int8_t *)&weights;
    vst1q_s32((int32_t *)&sums, vdotq_s32(vdupq_n_s32(0), vld1q_s8(at), vld1q_s8(inputs)));
    vst1q_s32((int32_t *)&sums + 4, vdotq_s32(vdupq_n_s32(0), vld1q_s8(at + 16), vld1q_s8(inputs + 16)));
#else
    for (int lane = 0; lane < 8; lane++) {
        sums[lane] = 0;
        for (int i = 4 * lane; i < 4 * lane + 4; i++)
            sums[lane] += weights[i] * inputs[i];
    }
#endif
    return sums;
#endif
}

/* Where the code of column i is kept among the 16-bit inputs of a block: as vpunpck puts the bytes of two halves. */
STEP int place_i16(int i)
{
    return (i & 7) + (i & 8) * 2 + (i & 16) / 2;
}

/* Does the same with codes up to 255, and inputs of 16 bits at their places. */
STEP Whole dot_i16(Unsigned codes, const int16_t *inputs)
{
#if USE_AVX2
    __m256i zero = _mm256_setzero_si256();
    __m256i low = _mm256_unpacklo_epi8((__m256i)codes, zero), high = _mm256_unpackhi_epi8((__m256i)codes, zero);
    __m256i first = _mm256_loadu_si256((const __m256i *)inputs), second = _mm256_loadu_si256((const __m256i *)inputs + 1);
#if USE_VNNI
    return (Whole)_mm256_dpwssd_epi32(_mm256_madd_epi16(low, first), high, second);
#else
    return (Whole)_mm256_add_epi32(_mm256_madd_epi16(low, first), _mm256_madd_epi16(high, second));
#endif
#else
    Whole sums;
    for (int lane = 0; lane < 8; lane++) {
        sums[lane] = 0;
        for (int i = 4 * lane; i < 4 * lane + 4; i++)
            sums[lane] += codes[i] * inputs[place_i16(i)];
    }
    return sums;
#endif
}

/* Spreads the i-th pair of numbers to eight lanes: the first four times, and the second four times. */
STEP Eight pair_at(const float *numbers, size_t i)
{
#if USE_AVX2
    __m256 both_of_them = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(numbers + 2 * i)));
    return (Eight)_mm256_permutevar_ps(both_of_them, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
#else
    float first = numbers[2 * i], second = numbers[2 * i + 1];
    return (Eight){first, first, first, first, second, second, second, second};
#endif
}

/* Selects numbers by their index. */
STEP Eight selected(Eight numbers, Whole index)
{
#if USE_AVX2
    return (Eight)_mm256_permutevar8x32_ps((__m256)numbers, (__m256i)index);
#else
    Eight found;
    for (int i = 0; i < 8; i++)
        found[i] = numbers[index[i]];
    return found;
#endif
}
