/* Declares the search for the scales of GGML's blocks, which schemes/ggml_search.py defines: eight blocks at a time,
 * one in each lane, so that every sum is added in the order of the elements, as numpy adds it there.
 *
 * Float operations must not be contracted: compile with -ffp-contract=off.
 */
#pragma once
#include "ranks.h"
#include "sizes.h"

enum { LANES_OF_BLOCKS = 8, MOST_ELEMENTS = 256, MOST_GROUPS = 16, MOST_STEPS = 5, MOST_TURNS = 16 };

/* A kind of block, and how its scales are searched for: the fields of ggml_blocks.Search. */
typedef struct {
    size_t groups, size;  /* a block is so many groups of so many elements, which are even */
    float low, high;      /* the codes; with a codebook 0 and 15 */
    float least, most;    /* the factors of groups */
    int minima;           /* NO_MINIMA and so on */
    size_t starts, divisors, steps, repeats, rounds;
    int by_value; /* weights follow from the values */
    const UnalignedFloat *start, *divisor; /* [starts, 2], [divisors, 2] */
    Bounds bounds;
    __m256 book[2]; /* the first and the last eight values of the codebook */
} Search;

enum { NO_MINIMA, MINIMA, ANY_MINIMA };

/* Eight blocks. Vectors hold one number of each. */
typedef struct {
    __m256 values[MOST_ELEMENTS], weights[MOST_ELEMENTS];
    __m256 up, down; /* powers of two that turn scales of the normalized values into those of the values, and back */
    __m256 scales[MOST_GROUPS], minima[MOST_GROUPS]; /* of each group alone, real numbers */
    __m256 sums[MOST_GROUPS], weighted[MOST_GROUPS]; /* of its weights, and of its weighted values */
} Blocks;

/* Factors of the groups, and the scales they are multiplied with. */
typedef struct {
    __m256 scale, minimum, error;
    __m256 factors[MOST_GROUPS], offsets[MOST_GROUPS]; /* whole numbers */
    __m256 next_scale, next_minimum;                   /* what least squares make of the scales for these codes */
} Choice;

INLINE __m256 all(float value)
{
    return _mm256_set1_ps(value);
}

INLINE __m256 where(__m256 condition, __m256 yes, __m256 no)
{
    return _mm256_blendv_ps(no, yes, condition);
}

INLINE __m256 above(__m256 a, __m256 b)
{
    return _mm256_cmp_ps(a, b, _CMP_GT_OQ);
}

INLINE __m256 magnitude(__m256 value)
{
    return _mm256_castsi256_ps(magnitudes(value));
}

/* Returns 1 / value, or 0 where the magnitude is not above 2^-60. */
INLINE __m256 inverse(__m256 value)
{
    __m256 some = above(magnitude(value), all(0x1p-60f));
    return _mm256_and_ps(all(1) / where(some, value, all(1)), some);
}

INLINE __m256 whole(__m256 value, float low, float high)
{
    __m256 nearest = _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_min_ps(_mm256_max_ps(nearest, all(low)), all(high));
}

/* Returns a scale of normalized values that float16 has for the block's own. */
INLINE __m256 held(const Blocks *blocks, __m256 scale)
{
    return through_half(scale * blocks->up) * blocks->down;
}

/* Factors that are tried, from the nearest one. */
static const float factor_steps[MOST_STEPS] = {0, -1, 1, -2, 2};

/* Returns the value that the code of a group's element, divided by the scale, stands for. */
INLINE __m256 nearest(int book, const Search *search, __m256 value)
{
    if (!book)
        return whole(value, search->low, search->high);
    __m256i index = rank(value, &search->bounds);
    return where(_mm256_castsi256_ps(_mm256_slli_epi32(index, 28)), _mm256_permutevar8x32_ps(search->book[1], index),
                 _mm256_permutevar8x32_ps(search->book[0], index));
}

/* Sums over even and odd elements of a group. */
typedef struct {
    __m256 of[2];
} Sum;

INLINE __m256 total(const Sum *sum)
{
    return sum->of[0] + sum->of[1];
}
