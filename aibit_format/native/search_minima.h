/* Searches for the scales and minima of groups, as ggml_minima.py does. */
#pragma once
#include "search.h"

/* Fits a scale and an offset to codes, and keeps them where they explain more than the best. */
INLINE void fit_both(const Search *search, const __m256 *values, const __m256 *weights, __m256 inverted, __m256 shift,
                     __m256 sum, __m256 weighted_sum, __m256 *gained, __m256 *scale, __m256 *offset)
{
    Sum codes = {0}, squares = {0}, products = {0};
    for (size_t i = 0; i < search->size; i += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            __m256 code = whole(values[i + k] * inverted + shift, 0, search->high), weighted = weights[i + k] * code;
            codes.of[k] += weighted;
            squares.of[k] += weighted * code;
            products.of[k] += weighted * values[i + k];
        }
    __m256 code = total(&codes), square = total(&squares), product = total(&products);
    __m256 determinant = sum * square - code * code, size = sum * square;
    __m256 solved = above(determinant, all(0x1p-20f) * size), divided = inverse(where(solved, determinant, all(0)));
    __m256 slope = (sum * product - weighted_sum * code) * divided;
    __m256 constant = where(solved, (square * weighted_sum - code * product) * divided, weighted_sum * inverse(sum));
    if (search->minima == MINIMA) { /* an offset is not above zero */
        __m256 positive = above(constant, all(0));
        slope = where(positive, product * inverse(square), slope);
        constant = where(positive, all(0), constant);
    }
    __m256 gain = slope * product + constant * weighted_sum;
    __m256 better = _mm256_andnot_ps(above(all(0), slope), above(gain, *gained));
    *gained = where(better, gain, *gained);
    *scale = where(better, slope, *scale);
    *offset = where(better, constant, *offset);
}

INLINE void fit_scales_and_minima(const Search *search, Blocks *blocks)
{
    for (size_t group = 0; group < search->groups; group++) {
        const __m256 *values = blocks->values + group * search->size, *weights = blocks->weights + group * search->size;
        Sum sums = {0}, weighted = {0};
        __m256 low = search->minima == MINIMA ? all(0) : values[0], high = values[0];
        for (size_t i = 0; i < search->size; i++) {
            low = _mm256_min_ps(low, values[i]);
            high = _mm256_max_ps(high, values[i]);
            sums.of[i & 1] += weights[i];
            weighted.of[i & 1] += weights[i] * values[i];
        }
        __m256 sum = total(&sums), weighted_sum = total(&weighted), range = inverse(high - low);
        __m256 gained = all(-1), scale = all(0), offset = all(0);
        for (size_t i = 0; i < search->starts; i++) {
            __m256 inverted = range * all(search->start[2 * i]);
            __m256 shift = all(0) - (low * inverted + all(search->start[2 * i + 1]));
            fit_both(search, values, weights, inverted, shift, sum, weighted_sum, &gained, &scale, &offset);
        }
        for (size_t i = 0; i < search->repeats; i++) {
            __m256 inverted = inverse(scale), shift = all(0) - offset * inverted;
            fit_both(search, values, weights, inverted, shift, sum, weighted_sum, &gained, &scale, &offset);
        }
        blocks->scales[group] = scale;
        blocks->minima[group] = all(0) - offset;
        blocks->sums[group] = sum;
        blocks->weighted[group] = weighted_sum;
    }
}

/* Chooses both factors of all groups under both scales. */
INLINE void choose_both(const Search *search, const Blocks *blocks, Choice *choice)
{
    __m256 inverted = inverse(choice->scale), of_minimum = inverse(choice->minimum);
    __m256 aa = all(0), ab = all(0), bb = all(0), ax = all(0), bx = all(0);
    choice->error = all(0);
    for (size_t group = 0; group < search->groups; group++) {
        const __m256 *values = blocks->values + group * search->size, *weights = blocks->weights + group * search->size;
        __m256 middle = whole(blocks->scales[group] * inverted, search->least, search->most);
        __m256 minimum = blocks->minima[group], sum = blocks->sums[group], mean = inverse(sum);
        __m256 least = all(0), factor = all(0), offset = all(0);
        for (size_t step = 0; step < search->steps; step++) {
            __m256 tried = whole(middle + all(factor_steps[step]), search->least, search->most);
            __m256 scale = choice->scale * tried, each = inverse(scale), shift = minimum * each;
            Sum errors = {0}, rests = {0};
            for (size_t i = 0; i < search->size; i += 2)
#pragma GCC unroll 2
                for (int k = 0; k < 2; k++) {
                    __m256 code = whole(values[i + k] * each + shift, 0, search->high);
                    __m256 rest = values[i + k] - scale * code + minimum, weighted = weights[i + k] * rest;
                    rests.of[k] += weighted;
                    errors.of[k] += weighted * rest;
                }
            __m256 rest = total(&rests);
            __m256 other = whole((minimum - rest * mean) * of_minimum, search->least, search->most);
            __m256 moved = choice->minimum * other - minimum;
            __m256 error = total(&errors) + moved * (rest + rest + moved * sum);
            __m256 better = step ? above(least, error) : above(all(1), all(0));
            least = where(better, error, least);
            factor = where(better, tried, factor);
            offset = where(better, other, offset);
        }
        __m256 scale = choice->scale * factor, each = inverse(scale);
        minimum = choice->minimum * offset;
        __m256 shift = minimum * each;
        Sum errors = {0}, codes = {0}, squares = {0}, products = {0};
        for (size_t i = 0; i < search->size; i += 2)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                __m256 code = whole(values[i + k] * each + shift, 0, search->high), weighted = weights[i + k] * code;
                __m256 rest = values[i + k] - scale * code + minimum;
                errors.of[k] += weights[i + k] * rest * rest;
                codes.of[k] += weighted;
                squares.of[k] += weighted * code;
                products.of[k] += weighted * values[i + k];
            }
        choice->factors[group] = factor;
        choice->offsets[group] = offset;
        choice->error += total(&errors);
        aa += factor * factor * total(&squares);
        ab += factor * offset * total(&codes);
        bb += offset * offset * sum;
        ax += factor * total(&products);
        bx += offset * blocks->weighted[group];
    }
    __m256 determinant = aa * bb - ab * ab, solved = above(determinant, all(0x1p-20f) * (aa * bb));
    __m256 divided = inverse(where(solved, determinant, all(0)));
    __m256 scale = where(solved, (bb * ax - ab * bx) * divided, ax * inverse(aa));
    __m256 minimum = where(solved, (ab * ax - aa * bx) * divided, choice->minimum);
    if (search->minima == MINIMA) {
        scale = where(above(scale, all(0)), scale, choice->scale);
        minimum = where(above(minimum, all(0)), minimum, choice->minimum);
    }
    choice->error = choice->error + choice->scale * all(0) + choice->minimum * all(0);
    choice->next_scale = held(blocks, scale);
    choice->next_minimum = held(blocks, minimum);
}
