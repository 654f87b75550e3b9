"""Searches for the scales of groups, of GGML's types without minima; ``ggml_search`` says how."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ggml_blocks import NONE, STEPS, Blocks, Choice, Search, decoded, in_order, inverse, least, total, whole


def fit_scales(search: Search, blocks: Blocks) -> None:
    """Find a scale of each group alone."""
    values, weights = blocks.values, blocks.weights
    top = np.take_along_axis(values, np.abs(values).argmax(axis=0)[None], axis=0)[0]
    inverted = inverse(top)
    gained, scale = np.full(top.shape, -1, np.float32), np.zeros(top.shape, np.float32)
    starts: Sequence[float | None] = [start for start, _ in search.starts] + [None] * search.repeats
    for start in starts:
        codes = decoded(search, values * (inverse(scale) if start is None else inverted * np.float32(start)))
        weighted = weights * codes
        product = total(weighted * values)
        found = product * inverse(total(weighted * codes))
        gain = product * found
        better = gain > gained
        gained, scale = np.where(better, gain, gained), np.where(better, found, scale)
    blocks.scales = scale


def choose_factors(search: Search, blocks: Blocks, scale: np.ndarray, minimum: np.ndarray) -> Choice:
    """Choose the factors of all groups under a scale."""
    values, weights = blocks.values, blocks.weights
    middle = whole(blocks.scales * inverse(scale), search.factors)

    def tried(step: int) -> tuple[np.ndarray, ...]:
        factors = whole(middle + np.float32(step), search.factors)
        each = scale * factors
        codes = decoded(search, values * inverse(each))
        rest = values - each * codes
        weighted = weights * codes
        return total(weights * rest * rest), factors, total(weighted * values), total(weighted * codes)

    error, factors, products, squares = least(map(tried, STEPS[: search.steps]))
    fitted = in_order(factors * products) * inverse(in_order(factors * factors * squares))
    error = in_order(error) + scale * NONE
    return Choice(scale, minimum, factors, np.zeros_like(factors), error, blocks.held(fitted), np.zeros_like(scale))
