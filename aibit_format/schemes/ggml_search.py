"""Searches for the scales, minima and codes with which a block of GGML's is closest to given values.

A value is approximated by ``d * factor * code - dmin * offset``: ``d`` and ``dmin`` are the block's float16, ``factor``
and ``offset`` small integers of a group, ``code`` is an element's, or what a codebook has in its place. Types without
minima have no second term, and types of one group have factors of 1. The search makes ``sum(weight * error^2)`` small,
which no known method makes least. What llama.cpp's encoder tries is known (``make_qx_quants``, ``make_qkx2_quants`` and
``make_qkx3_quants`` in https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c): scales in steps around that of
the range, each refitted by least squares. This goes on from there:

1. Each group alone, with real numbers. From many scales, and ends of the range that are cut off, codes are rounded, and
   scale and minimum are solved for them (weighted least squares; a minimum is not below zero). The best is rounded and
   solved again, ``repeats`` times.
2. The whole block. For several ``d`` and ``dmin``, rounded to float16, each group gets the factor, of ``steps``
   nearest ones, with the least error, and the offset that is best with it.
3. ``d`` and ``dmin`` are solved for the codes and factors of the best, by least squares over the whole block, rounded
   to float16, and step 2 repeated with them, ``rounds`` times. What is not better is not taken.

Weights are the importance of columns, or 1. llama.cpp multiplies them with a function of the values. On SmolLM2 135M
that raised the divergence of outputs in most types and lowered it clearly in q2_k and q3_k without importance, where it
is used here too (``by_value``). In q4_k without importance it makes no clear difference there, and a clear one on
Gemma 3 270M: .133 with weights of 1, .149 with ``by_value``. In iq4_nl and iq4_xs, whose codebook is coarse far out,
magnitudes and half the largest one lowered it on SmolLM2 from .268 to .234 (``magnitudes``); on Gemma .198 and .204.

Every result is exact in the sense that other code can give the same bits (``native/encode_ggml.c`` does): operations
are float32, rounded one by one; sums over a group are two, of its even and of its odd elements in order, which are
then added; sums over groups are in order; of equal candidates the first is taken. To keep squares in range, a block is
first multiplied by a power of two, after which its largest magnitude is from 1 to 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from .ggml_blocks import Blocks, Choice, Found, Search, inverse, powers, whole
from .ggml_minima import choose_both, fit_both
from .ggml_scales import choose_factors, fit_scales

_LEAST_WEIGHT = np.float32(2.0**-20)  # relative to the largest of a block, so that no column is left to chance


def weights_of(importance: np.ndarray | None, block: int) -> np.ndarray:
    """Return weights for blocks, f32 [periods, block], from an importance of columns, f32 [columns] or [rows, columns].

    Block i has the weights of period i modulo their number. They are multiplied by a power of two, as values are.
    """
    if importance is None:
        return np.ones((1, block), np.float32)
    blocks = np.ascontiguousarray(importance, np.float32).reshape(-1, block)
    _, down = powers(blocks.max(axis=1, keepdims=True))
    return np.maximum(blocks * down, _LEAST_WEIGHT)


def search_blocks(search: Search, values: np.ndarray, weights: np.ndarray) -> Found:
    """Search for the blocks of ``values``, finite f32 [n, block], with weights f32 [n, block]."""
    blocks = Blocks.of(search, values, weights)
    fit, choose = (fit_both, choose_both) if search.minima else (fit_scales, choose_factors)
    with np.errstate(over="ignore", invalid="ignore"):  # scales beyond float16's
        fit(search, blocks)
        return _result(search, blocks, _best(search, blocks, choose))


_Choose = Callable[[Search, Blocks, np.ndarray, np.ndarray], Choice]


def _best(search: Search, blocks: Blocks, choose: _Choose) -> Choice:
    """Try scales for whole blocks, then those that fit the codes of the best."""
    largest, lowest = blocks.scales[0], blocks.minima[0]
    for scale, minimum in zip(blocks.scales[1:], blocks.minima[1:], strict=True):
        largest = np.where(np.abs(scale) > np.abs(largest), scale, largest)
        lowest = np.maximum(lowest, minimum)
    scales = [
        (blocks.held(largest / np.float32(divisor)), blocks.held(lowest / np.float32(other)))
        for divisor, other in search.divisors
    ]
    best = reduce(Choice.improved, (choose(search, blocks, *each) for each in scales))
    for _ in range(search.rounds):
        best = best.improved(choose(search, blocks, best.next_scale, best.next_minimum))
    return best


def _result(search: Search, blocks: Blocks, choice: Choice) -> Found:
    """Round to codes with the scales that were chosen."""
    each = inverse(choice.scale * choice.factors)
    scaled = blocks.values * each + choice.minimum * choice.offsets * each
    table = search.bounds_and_book
    if table is None:
        codes = whole(scaled, search.codes) - np.float32(search.codes[0])
    else:
        codes = np.searchsorted(table[:15], scaled)
    scales = np.stack([choice.scale, choice.minimum], axis=1) * blocks.up[:, None] + np.float32(0)
    return Found(
        codes.astype(np.uint8).transpose(2, 1, 0).reshape(-1, search.block),
        np.stack([choice.factors, choice.offsets]).astype(np.int8).transpose(2, 0, 1),
        scales.astype(np.float16),
    )
