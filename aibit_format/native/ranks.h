/* Ranks values among 15 ascending bounds: how many of them lie strictly below. Codes of 4 bits are found so. */
#pragma once
#include "vectors.h"

/* Bounds for a binary search that counts how many of 15 ascending ones lie strictly below a value: first 7, then 3 or
 * 11, and so on. */
typedef struct {
    __m256 levels[4];
} Bounds;

INLINE Bounds bounds_of(const UnalignedFloat *bounds)
{
    Bounds result;
    for (int level = 0; level < 4; level++) {
        float row[8] = {0};
        for (int i = 0; i < 1 << level; i++)
            row[i] = bounds[(2 * i + 1) * (8 >> level) - 1];
        result.levels[level] = _mm256_loadu_ps(row);
    }
    return result;
}

INLINE __m256i rank(__m256 values, const Bounds *bounds)
{
    __m256i found = _mm256_setzero_si256();
    for (int level = 0; level < 4; level++) {
        __m256 bound = _mm256_permutevar8x32_ps(bounds->levels[level], found);
        __m256i passed = _mm256_castps_si256(_mm256_cmp_ps(values, bound, _CMP_GT_OQ)); /* -1 where it is */
        found = _mm256_sub_epi32(_mm256_add_epi32(found, found), passed);
    }
    return found;
}
