/* Declares groups of values on a grid, for the search for their scales that schemes/scale_search.py defines: eight groups
 * at a time, one in each lane, so that every sum is added in the order of the elements, as numpy adds it there.
 *
 * Float operations must not be contracted: compile with -ffp-contract=off.
 */
#pragma once
#include "search.h"

enum { INTEGERS, FLOATS, BOOK };

/* What codes stand for: the fields of scale_search.Grid. */
typedef struct {
    float low, high;
    float least, magic; /* of floats: the least power of two that is not subnormal, and what leaves only the fraction */
    Bounds bounds;      /* of a codebook, and its first and last eight values */
    __m256 book[2];
} Grid;

/* Eight groups. Vectors hold one number of each. */
typedef struct {
    size_t size;              /* elements, an even number */
    __m256 *values, *weights; /* [size] */
    __m256 up, down;          /* powers of two that turn scales of the normalized values into those of the values, and back */
} Groups;

/* Returns the value of the grid that is nearest. */
INLINE __m256 on_grid(int kind, const Grid *grid, __m256 value)
{
    if (kind == BOOK) {
        __m256i index = rank(value, &grid->bounds);
        return where(_mm256_castsi256_ps(_mm256_slli_epi32(index, 28)),
                     _mm256_permutevar8x32_ps(grid->book[1], index), _mm256_permutevar8x32_ps(grid->book[0], index));
    }
    if (kind == INTEGERS)
        return whole(value, grid->low, grid->high);
    __m256 clipped = _mm256_min_ps(_mm256_max_ps(value, all(grid->low)), all(grid->high));
    __m256 power = _mm256_and_ps(clipped, _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000)));
    __m256 magic = _mm256_max_ps(power, all(grid->least)) * all(grid->magic);
    return clipped + magic - magic;
}
