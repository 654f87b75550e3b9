"""Searches for the scales and minima of groups, of GGML's types that have both; ``ggml_search`` says how."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ggml_blocks import MINIMA, NONE, SOLVABLE, STEPS, Blocks, Choice, Search, in_order, inverse, least, total, whole


def fit_both(search: Search, blocks: Blocks) -> None:
    """Find a scale and a minimum of each group alone."""
    values, weights = blocks.values, blocks.weights
    limits = 0, search.codes[1]
    low, high = values.min(axis=0), values.max(axis=0)
    low = np.minimum(low, np.float32(0)) if search.minima == MINIMA else low
    sums, weighted_sums = total(weights), total(weights * values)
    span = inverse(high - low)
    gained, scale, offset = (np.full(low.shape, start, np.float32) for start in (-1, 0, 0))
    starts: Sequence[tuple[float, float] | None] = [*search.starts, *[None] * search.repeats]
    for start in starts:
        if start is None:
            inverted = inverse(scale)
            shift = np.float32(0) - offset * inverted
        else:
            inverted = span * np.float32(start[0])
            shift = np.float32(0) - (low * inverted + np.float32(start[1]))
        codes = whole(values * inverted + shift, limits)
        weighted = weights * codes
        code, square, product = total(weighted), total(weighted * codes), total(weighted * values)
        determinant, divided = _determinant(sums * square, code * code)
        slope = (sums * product - weighted_sums * code) * divided
        constant = np.where(
            determinant, (square * weighted_sums - code * product) * divided, weighted_sums * inverse(sums)
        )
        if search.minima == MINIMA:
            positive = constant > 0
            slope = np.where(positive, product * inverse(square), slope)
            constant = np.where(positive, np.float32(0), constant)
        gain = slope * product + constant * weighted_sums
        better = (gain > gained) & ~(slope < 0)
        gained, scale = np.where(better, gain, gained), np.where(better, slope, scale)
        offset = np.where(better, constant, offset)
    blocks.scales, blocks.minima = scale, np.float32(0) - offset
    blocks.sums, blocks.weighted = sums, weighted_sums


def _determinant(product: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where two equations can be solved, and the inverse of their determinant, product - square."""
    determinant = product - square
    solved = determinant > SOLVABLE * product
    return solved, inverse(np.where(solved, determinant, np.float32(0)))


def choose_both(search: Search, blocks: Blocks, scale: np.ndarray, minimum: np.ndarray) -> Choice:
    """Choose the factors and offsets of all groups under both scales."""
    values, weights, real = blocks.values, blocks.weights, blocks.minima
    limits = 0, search.codes[1]
    middle = whole(blocks.scales * inverse(scale), search.factors)
    means, of_minimum = inverse(blocks.sums), inverse(minimum)

    def tried(step: int) -> tuple[np.ndarray, ...]:
        factors = whole(middle + np.float32(step), search.factors)
        each = scale * factors
        inverted = inverse(each)
        rest = values - each * whole(values * inverted + real * inverted, limits) + real
        weighted = weights * rest
        remaining = total(weighted)
        # The codes stay as they are while the minimum moves to one that the block can have.
        offsets = whole((real - remaining * means) * of_minimum, search.factors)
        moved = minimum * offsets - real
        return total(weighted * rest) + moved * (remaining + remaining + moved * blocks.sums), factors, offsets

    _, factors, offsets = least(map(tried, STEPS[: search.steps]))
    each, shift = scale * factors, minimum * offsets
    inverted = inverse(each)
    codes = whole(values * inverted + shift * inverted, limits)
    rest = values - each * codes + shift
    weighted = weights * codes
    # d * a - dmin * b is closest to the values; aa is the weighted sum of a * a, and so on.
    aa = in_order(factors * factors * total(weighted * codes))
    ab = in_order(factors * offsets * total(weighted))
    bb = in_order(offsets * offsets * blocks.sums)
    ax, bx = in_order(factors * total(weighted * values)), in_order(offsets * blocks.weighted)
    solved, divided = _determinant(aa * bb, ab * ab)
    fitted = np.where(solved, (bb * ax - ab * bx) * divided, ax * inverse(aa))
    lowered = np.where(solved, (ab * ax - aa * bx) * divided, minimum)
    if search.minima == MINIMA:
        fitted, lowered = np.where(fitted > 0, fitted, scale), np.where(lowered > 0, lowered, minimum)
    error = in_order(total(weights * rest * rest)) + scale * NONE + minimum * NONE
    return Choice(scale, minimum, factors, offsets, error, blocks.held(fitted), blocks.held(lowered))
