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

#if defined(__SANITIZE_ADDRESS__) /* whose checks in every copy would take many minutes to compile */
#define STEP TARGET static inline __attribute__((noinline))
#else
#define STEP TARGET static inline __attribute__((always_inline))
#endif

/* Goes before loops over a stretch, in which the number of a block is then a constant. Elsewhere this would multiply the
 * code, and the time to compile it. */
#if USE_AVX2 && !defined(__SANITIZE_ADDRESS__)
#define UNROLLED _Pragma("GCC unroll 8")
#else
#define UNROLLED
#endif

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

STEP float load_number(Source from, const void *numbers, size_t i)
{
    uint16_t half;
    if (from == F32)
        return ((const UnalignedFloat *)numbers)[i];
    memcpy(&half, (const char *)numbers + 2 * i, 2);
    return from == F16 ? half_bits(half) : from_bits((uint32_t)half << 16);
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

/* Multiplies 32 codes with 32 of inputs, and adds the products of each four to ``sums``. Codes are at most 127; if
 * ``wide``, at most 255, and products are those of code - 128 unless there are WIDE_CODES. */
STEP Whole add_dot_i8(Whole sums, Unsigned codes, int wide, Bytes inputs)
{
#if USE_VNNI
    return (Whole)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)codes, (__m256i)inputs);
#elif USE_AVX2
    __m256i values = (__m256i)inputs, weights = (__m256i)codes;
    if (wide) {
        weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
        values = _mm256_sign_epi8(values, weights), weights = _mm256_abs_epi8(weights);
    }
    /* 128 * 127 * 2 is less than 2^15: nothing saturates. */
    return sums + (Whole)_mm256_madd_epi16(_mm256_maddubs_epi16(weights, values), _mm256_set1_epi16(1));
#else
    Bytes weights = (Bytes)(wide ? codes ^ 128 : codes);
#if USE_DOTPROD
    int32_t *to = (int32_t *)&sums;
    const int8_t *first = (const int8_t *)&weights, *second = (const int8_t *)&inputs;
    vst1q_s32(to, vdotq_s32(vld1q_s32(to), vld1q_s8(first), vld1q_s8(second)));
    vst1q_s32(to + 4, vdotq_s32(vld1q_s32(to + 4), vld1q_s8(first + 16), vld1q_s8(second + 16)));
#else
    for (int i = 0; i < 32; i++)
        sums[i / 4] += weights[i] * inputs[i];
#endif
    return sums;
#endif
}

STEP Whole dot_i8(Unsigned codes, int wide, const int8_t *inputs)
{
    Bytes values;
    memcpy(&values, inputs, 32);
    return add_dot_i8((Whole){0}, codes, wide, values);
}

/* Where the code of column i is kept among the 16-bit inputs of a block: even columns first, then odd ones. */
STEP int place_i16(int i)
{
    return i % 2 * 16 + i / 2;
}

typedef int16_t Shorts __attribute__((vector_size(32)));

/* Widens codes at even or at odd places to 16 bits. */
STEP Shorts even_codes(Unsigned codes)
{
    return (Shorts)codes & 255;
}

STEP Shorts odd_codes(Unsigned codes)
{
    typedef uint16_t Words16 __attribute__((vector_size(32)));
    return (Shorts)((Words16)codes >> 8);
}

/* Multiplies numbers of 16 bits, and adds the products of each two to ``sums``. */
STEP Whole add_pairs(Whole sums, Shorts codes, Shorts inputs)
{
#if USE_VNNI
    return (Whole)_mm256_dpwssd_epi32((__m256i)sums, (__m256i)codes, (__m256i)inputs);
#elif USE_AVX2
    return sums + (Whole)_mm256_madd_epi16((__m256i)codes, (__m256i)inputs);
#else
    for (int i = 0; i < 8; i++)
        sums[i] += codes[2 * i] * inputs[2 * i] + codes[2 * i + 1] * inputs[2 * i + 1];
    return sums;
#endif
}

/* Does the same as ``dot_i8`` with codes up to 255, and inputs of 16 bits at their places. */
STEP Whole dot_i16(Unsigned codes, const int16_t *inputs)
{
    Shorts first, second;
    memcpy(&first, inputs, 32), memcpy(&second, inputs + 16, 32);
    return add_pairs(add_pairs((Whole){0}, even_codes(codes), first), odd_codes(codes), second);
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

/* Gives both halves of each of eight blocks the number of the block. */
STEP void put_each(Eight numbers, Eight halves[2])
{
    halves[0] = selected(numbers, (Whole){0, 0, 1, 1, 2, 2, 3, 3});
    halves[1] = selected(numbers, (Whole){4, 4, 5, 5, 6, 6, 7, 7});
}

/* Selects the numbers at even places of two vectors, or those at odd ones. */
STEP Eight of_both(Eight first, Eight second, int odd)
{
#if USE_AVX2
    __m256 mixed = odd ? _mm256_shuffle_ps((__m256)first, (__m256)second, 0xdd)
                       : _mm256_shuffle_ps((__m256)first, (__m256)second, 0x88);
    return (Eight)_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
#else
    Eight found;
    for (int i = 0; i < 4; i++)
        found[i] = first[2 * i + odd], found[4 + i] = second[2 * i + odd];
    return found;
#endif
}

/* Gives all lanes the same four bytes. */
STEP Whole four_at(const void *from)
{
    int32_t four;
    memcpy(&four, from, 4);
    return (Whole){four, four, four, four, four, four, four, four};
}

/* Turns a matrix of 8 by 8 numbers: rows become columns. */
STEP void turn(Whole rows[8])
{
#if USE_AVX2
    __m256i two[8], four[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        two[2 * i] = _mm256_unpacklo_epi32((__m256i)rows[2 * i], (__m256i)rows[2 * i + 1]);
        two[2 * i + 1] = _mm256_unpackhi_epi32((__m256i)rows[2 * i], (__m256i)rows[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            four[4 * i + 2 * k] = _mm256_unpacklo_epi64(two[4 * i + k], two[4 * i + k + 2]);
            four[4 * i + 2 * k + 1] = _mm256_unpackhi_epi64(two[4 * i + k], two[4 * i + k + 2]);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        rows[i] = (Whole)_mm256_permute2x128_si256(four[i], four[4 + i], 0x20);
        rows[4 + i] = (Whole)_mm256_permute2x128_si256(four[i], four[4 + i], 0x31);
    }
#else
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < i; k++) {
            int32_t number = rows[i][k];
            rows[i][k] = rows[k][i], rows[k][i] = number;
        }
#endif
}
