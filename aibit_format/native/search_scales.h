/* Searches for the scales of groups, of types without minima, as ggml_scales.py does. */
#pragma once
#include "search.h"

/* Fits a scale to the codes that an inverse scale gives, and keeps it where it explains more than the best. */
INLINE __m256 fit_scale(int book, const Search *search, const __m256 *values, const __m256 *weights, __m256 inverted,
                        __m256 *gained, __m256 *scale)
{
    Sum products = {0}, squares = {0};
    for (size_t i = 0; i < search->size; i += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            __m256 code = nearest(book, search, values[i + k] * inverted), weighted = weights[i + k] * code;
            products.of[k] += weighted * values[i + k];
            squares.of[k] += weighted * code;
        }
    __m256 product = total(&products), found = product * inverse(total(&squares)), gain = product * found;
    __m256 better = above(gain, *gained);
    *gained = where(better, gain, *gained);
    *scale = where(better, found, *scale);
    return found;
}

INLINE void fit_scales(int book, const Search *search, Blocks *blocks)
{
    for (size_t group = 0; group < search->groups; group++) {
        const __m256 *values = blocks->values + group * search->size, *weights = blocks->weights + group * search->size;
        __m256 top = all(0), gained = all(-1), scale = all(0);
        for (size_t i = 0; i < search->size; i++)
            top = where(above(magnitude(values[i]), magnitude(top)), values[i], top);
        __m256 inverted = inverse(top);
        for (size_t i = 0; i < search->starts; i++)
            fit_scale(book, search, values, weights, inverted * all(search->start[2 * i]), &gained, &scale);
        for (size_t i = 0; i < search->repeats; i++)
            fit_scale(book, search, values, weights, inverse(scale), &gained, &scale);
        blocks->scales[group] = scale;
    }
}

/* Chooses the factors of all groups under a scale. */
INLINE void choose_factors(int book, const Search *search, const Blocks *blocks, Choice *choice)
{
    __m256 inverted = inverse(choice->scale), products = all(0), squares = all(0);
    choice->error = all(0);
    for (size_t group = 0; group < search->groups; group++) {
        const __m256 *values = blocks->values + group * search->size, *weights = blocks->weights + group * search->size;
        __m256 middle = whole(blocks->scales[group] * inverted, search->least, search->most);
        __m256 least = all(0), factor = all(0), product = all(0), square = all(0);
        for (size_t step = 0; step < search->steps; step++) {
            __m256 tried = whole(middle + all(factor_steps[step]), search->least, search->most);
            __m256 scale = choice->scale * tried, each = inverse(scale);
            Sum errors = {0}, some_products = {0}, some_squares = {0};
            for (size_t i = 0; i < search->size; i += 2)
#pragma GCC unroll 2
                for (int k = 0; k < 2; k++) {
                    __m256 value = values[i + k], code = nearest(book, search, value * each);
                    __m256 rest = value - scale * code, weighted = weights[i + k] * code;
                    errors.of[k] += weights[i + k] * rest * rest;
                    some_products.of[k] += weighted * value;
                    some_squares.of[k] += weighted * code;
                }
            __m256 error = total(&errors), better = step ? above(least, error) : above(all(1), all(0));
            least = where(better, error, least);
            factor = where(better, tried, factor);
            product = where(better, total(&some_products), product);
            square = where(better, total(&some_squares), square);
        }
        choice->factors[group] = factor;
        choice->error += least;
        products += factor * product;
        squares += factor * factor * square;
    }
    choice->error += choice->scale * all(0); /* NaN for a scale beyond float16's */
    choice->next_scale = held(blocks, products * inverse(squares));
}
