"""Searches for the scales and zero points with which codes of groups are closest to given values.

A value is approximated by ``scale * (code - zero)``, where what codes stand for is on a ``Grid``: whole numbers, a
small float's values, or a codebook. The search makes ``sum(weight * error^2)`` of each group small, in two steps:

1. ``fit`` with real numbers. From many scales, and with zeros also from ends of the range that are cut off, codes are
   rounded, and scale and zero are solved for them by weighted least squares. The one that explains most is rounded and
   solved again. This is what llama.cpp's ``make_qx_quants`` and ``make_qkx2_quants`` do.
2. ``choose`` among numbers as a scheme stores them: those of plain rounding, and roundings of what step 1 found. The
   scale is then solved for the codes of the best, rounded and tried again. Of equal ones the first is taken, and plain
   rounding is the first: no group has a larger weighted error than there.

Results are exact in the sense that other code can give the same bits (``native/encode_groups.c`` does): operations are
float32, rounded one by one; sums are two, of even and of odd elements in order, which are then added. To keep squares
in range, a group is first multiplied by a power of two, after which its largest magnitude is from 1 to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..dtypes import to_float32
from .ggml_blocks import SOLVABLE, inverse, powers, total, whole

INTEGERS, FLOATS, BOOK = range(3)  # kinds of grids
LARGEST_GROUP = 1 << 16  # elements; larger groups are rounded plainly: one scale for so many has little to choose

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Describe what codes stand for, before the scale, and which scales are tried.

    low, high: the least and the greatest value.
    starts: what the element of largest magnitude is scaled to; or with zeros, into how many steps the range is cut, and
        how many of them are cut off below.
    fraction, least: of floats: bits of the fraction, and the least power of two that is not subnormal.
    book: of a codebook: 16 ascending values.
    """

    kind: int
    low: float
    high: float
    starts: tuple[tuple[float, float], ...]
    has_zero: bool = False
    fraction: int = 0
    least: float = 0
    book: tuple[float, ...] = ()

    @property
    def magic(self) -> float:
        """Return the number that, times a power of two and added, leaves no bits below a float's fraction."""
        return 1.5 * 2.0 ** (23 - self.fraction)

    @cached_property
    def bounds_and_book(self) -> np.ndarray | None:
        """Return the 15 midpoints of the codebook and its 16 values, f32 [31], or ``None``."""
        if self.kind != BOOK:
            return None
        values = np.array(self.book, np.float32)
        return np.concatenate([(values[1:] + values[:-1]) / np.float32(2), values])

    def nearest(self, scaled: np.ndarray) -> np.ndarray:
        """Return the nearest values of the grid, f32; ties are to even codes, or with a codebook to the lower."""
        if self.bounds_and_book is not None:
            return self.bounds_and_book[15:][np.searchsorted(self.bounds_and_book[:15], scaled)]
        if self.kind == INTEGERS:
            return whole(scaled, (int(self.low), int(self.high)))
        clipped = np.minimum(np.maximum(scaled, np.float32(self.low)), np.float32(self.high))
        power = np.maximum((clipped.view(np.uint32) & 0x7F80_0000).view(np.float32), np.float32(self.least))
        magic = power * np.float32(self.magic)
        return (clipped + magic) - magic


@dataclass(frozen=True)
class Groups:
    """Hold groups of values, each of an even number of elements, and weights of their squared errors.

    Group i has the weights of period i modulo their number.
    """

    values: np.ndarray  # [n, size] in the storage of ``dtype``
    dtype: str
    weights: np.ndarray  # f32 [periods, size], the largest of a group from 1 to 2

    def normal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return values and weights, f32 [size, n], the values normalized; and the powers that did, up and down."""
        values = to_float32(self.values, self.dtype)
        up, down = powers(np.abs(values).max(axis=1, initial=0))
        weights = self.weights[np.arange(len(values)) % len(self.weights)]
        return (values * down[:, None]).T.copy(), weights.T.copy(), up, down


def fit(grid: Grid, groups: Groups, repeats: int) -> Pair:
    """Fit scales and zeros that are real numbers, f32 [n] both."""
    values, weights, up, _ = groups.normal()
    with np.errstate(over="ignore", invalid="ignore"):
        scale, zero = (_fit_both if grid.has_zero else _fit_scale)(grid, values, weights, repeats)
        return scale * up, zero


def _fit_scale(grid: Grid, values: np.ndarray, weights: np.ndarray, repeats: int) -> Pair:
    magnitude = np.abs(values)
    top = np.take_along_axis(values, magnitude.argmax(axis=0)[None], axis=0)[0]
    to_top = inverse(top)
    gained, scale = np.full(top.shape, -1, np.float32), np.zeros(top.shape, np.float32)
    for start in [*(first for first, _ in grid.starts), *[None] * repeats]:
        inverted = inverse(scale) if start is None else np.abs(to_top) * np.float32(start)
        if start is not None and grid.kind == INTEGERS:  # whose ends differ, so that signs matter
            inverted = to_top * np.float32(start)
        codes = grid.nearest(values * inverted)
        weighted = weights * codes
        product = total(weighted * values)
        found = product * inverse(total(weighted * codes))
        gain = product * found
        better = gain > gained
        gained, scale = np.where(better, gain, gained), np.where(better, found, scale)
    return scale, np.zeros(top.shape, np.float32)


def _fit_both(grid: Grid, values: np.ndarray, weights: np.ndarray, repeats: int) -> Pair:
    low, high = values.min(axis=0), values.max(axis=0)
    sums, weighted_sums = total(weights), total(weights * values)
    span = inverse(high - low)
    gained, scale, zero = (np.full(low.shape, start, np.float32) for start in (-1, 0, 0))
    starts: Sequence[tuple[float, float] | None] = [*grid.starts, *[None] * repeats]
    for start in starts:
        if start is None:
            inverted, shift = inverse(scale), zero
        else:
            inverted = span * np.float32(start[0])
            shift = np.float32(0) - (low * inverted + np.float32(start[1]))
        codes = grid.nearest(values * inverted + shift)
        weighted = weights * codes
        code, square, product = total(weighted), total(weighted * codes), total(weighted * values)
        first, second = sums * square, code * code
        determinant = first - second
        solved = determinant > SOLVABLE * first
        divided = inverse(np.where(solved, determinant, np.float32(0)))
        slope = (sums * product - weighted_sums * code) * divided
        constant = (square * weighted_sums - code * product) * divided
        gain = slope * product + constant * weighted_sums
        better = (gain > gained) & (slope > 0)
        gained, scale = np.where(better, gain, gained), np.where(better, slope, scale)
        zero = np.where(better, np.float32(0) - constant * inverse(slope), zero)
    return scale, zero


def choose(grid: Grid, groups: Groups, scales: np.ndarray, zeros: np.ndarray) -> Pair:
    """Choose among scales and zeros, f32 [candidates, n].

    Returns:
        The index of the candidate with the least weighted error, u8 [n]; and the scale that fits its codes
        best, f32 [n].
    """
    values, weights, up, down = groups.normal()
    best, index, fitted = (np.zeros(len(up), dtype) for dtype in (np.float32, np.uint8, np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        for i, (scale, zero) in enumerate(zip(scales * down, zeros, strict=True)):
            codes = grid.nearest(values * inverse(scale) + zero) - zero
            weighted, rest = weights * codes, values - scale * codes
            error = total(weights * rest * rest)
            found = total(weighted * values) * inverse(total(weighted * codes))
            better = best > error if i else np.ones(len(up), np.bool_)
            best, fitted = np.where(better, error, best), np.where(better, found, fitted)
            index[better] = i
        return index, fitted * up


class Steps(NamedTuple):
    """Do the two steps: with numpy here, or with compiled code that gives the same bits."""

    fit: Callable[[Grid, Groups, int], Pair]
    choose: Callable[[Grid, Groups, np.ndarray, np.ndarray], Pair]


NUMPY = Steps(fit, choose)
