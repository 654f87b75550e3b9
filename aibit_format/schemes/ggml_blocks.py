"""Holds GGML's blocks while their scales are searched for, and the steps that all searches share (``ggml_search``).

Arrays are f32: [elements of a group, groups, n blocks], [groups, n] or [n].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

NO_MINIMA, MINIMA, ANY_MINIMA = range(3)  # none; not below zero; of any sign

STEPS = (0, -1, 1, -2, 2)  # from the nearest factor
NONE = np.float32(0)  # times a scale beyond float16's it is NaN, and no error is smaller than that
_TINY = np.float32(2.0**-60)  # magnitudes up to this one have no inverse
SOLVABLE = np.float32(2.0**-20)  # a determinant, relative to its first product, from which two unknowns are solved

Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Search:
    """Describe a type of block, and what is tried for it.

    starts: of a group alone: steps of the range in which the element of largest magnitude is, or (with minima) steps
        from the least value to the greatest, and how many steps are cut off below.
    divisors: of the groups' largest scale and minimum, which make ``d`` and ``dmin``.
    by_value: errors are weighted by sqrt(2 * mean(x^2) + x^2) of the values x of a block, and not as the caller says.
    """

    groups: int
    size: int  # elements of a group
    codes: tuple[int, int]  # the least and the greatest; 0 and 15 with a codebook
    factors: tuple[int, int]
    starts: Pairs
    divisors: Pairs = ((1, 1),)
    minima: int = NO_MINIMA
    book: tuple[int, ...] | None = None  # 16 ascending values
    steps: int = 1  # factors that are tried, at most 5
    repeats: int = 2
    rounds: int = 2
    by_value: bool = False

    @property
    def block(self) -> int:
        """Return the number of elements of a block."""
        return self.groups * self.size

    @cached_property
    def bounds_and_book(self) -> np.ndarray | None:
        """Return the 15 midpoints of the codebook and its 16 values, f32 [31], or ``None``."""
        if self.book is None:
            return None
        values = np.array(self.book, np.float32)
        return np.concatenate([(values[1:] + values[:-1]) / 2, values])


@dataclass(frozen=True)
class Found:
    """Hold what was found for n blocks: codes from 0 up, factors and offsets, and both scales.

    A scale is infinite or NaN if float16 has none that is large enough.
    """

    codes: np.ndarray  # u8 [n, block]
    factors: np.ndarray  # i8 [n, 2, groups]: factors, offsets
    scales: np.ndarray  # f16 [n, 2]: d, dmin

    @classmethod
    def empty(cls, search: Search, count: int) -> Found:
        """Make room for ``count`` blocks."""
        return cls(
            np.empty((count, search.block), np.uint8),
            np.empty((count, 2, search.groups), np.int8),
            np.empty((count, 2), np.float16),
        )


def powers(magnitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return powers of two, f32: near the magnitude, and their inverse."""
    exponents = (magnitude.view(np.uint32) >> 23).clip(27, 253)
    return (exponents << 23).view(np.float32), (254 - exponents << 23).view(np.float32)


def inverse(value: np.ndarray) -> np.ndarray:
    """Return 1 / value, or 0 where the magnitude is not above 2^-60."""
    some = np.abs(value) > _TINY
    return np.where(some, np.float32(1) / np.where(some, value, np.float32(1)), np.float32(0))


def whole(value: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """Round to whole numbers, ties to even, from the first limit to the second."""
    rounded = np.rint(value)
    np.maximum(rounded, np.float32(limits[0]), out=rounded)
    return np.minimum(rounded, np.float32(limits[1]), out=rounded)


def in_order(terms: np.ndarray) -> np.ndarray:
    """Add up along the first dimension, one term after another."""
    sums = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        sums += term
    return sums


def total(terms: np.ndarray) -> np.ndarray:
    """Add up over the elements of a group, in the stated order."""
    even, odd = in_order(terms.reshape(len(terms) // 2, 2, *terms.shape[1:]))
    return even + odd


def least(tried: Iterator[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Return, element by element, the arrays of the one whose first array is least there."""
    best = next(tried)
    for other in tried:
        better = best[0] > other[0]
        best = tuple(np.where(better, new, old) for new, old in zip(other, best, strict=True))
    return best


def decoded(search: Search, scaled: np.ndarray) -> np.ndarray:
    """Return what the codes nearest to the scaled values stand for."""
    table = search.bounds_and_book
    return whole(scaled, search.codes) if table is None else table[15:][np.searchsorted(table[:15], scaled)]


@dataclass
class Blocks:
    """Hold normalized blocks, and what was found for each group alone."""

    values: np.ndarray  # f32 [size, groups, n]
    weights: np.ndarray
    up: np.ndarray  # f32 [n]
    down: np.ndarray
    scales: np.ndarray  # f32 [groups, n]
    minima: np.ndarray
    sums: np.ndarray  # of the weights, and of the weighted values
    weighted: np.ndarray

    @classmethod
    def of(cls, search: Search, values: np.ndarray, weights: np.ndarray) -> Blocks:
        """Normalize blocks, f32 [n, block]."""
        up, down = powers(np.abs(values).max(axis=1))
        shape = len(values), search.groups, search.size
        normal, weight = (each.reshape(shape).transpose(2, 1, 0).copy() for each in (values, weights))
        normal *= down
        if search.by_value:
            squares = normal * normal
            square = in_order(squares.transpose(1, 0, 2).reshape(-1, len(values)))
            weight = np.sqrt(square * np.float32(2 / search.block) + squares)
        nothing = np.zeros(normal.shape[1:], np.float32)
        return cls(normal, weight, up, down, nothing, nothing, nothing, nothing)

    def held(self, scale: np.ndarray) -> np.ndarray:
        """Round a scale of normalized values to one that float16 has for the block's own."""
        return (scale * self.up).astype(np.float16).astype(np.float32) * self.down


@dataclass
class Choice:
    """Hold scales, the factors chosen under them, the error, and the scales that least squares make of the codes."""

    scale: np.ndarray  # f32 [n]
    minimum: np.ndarray
    factors: np.ndarray  # f32 [groups, n], whole numbers
    offsets: np.ndarray
    error: np.ndarray
    next_scale: np.ndarray
    next_minimum: np.ndarray

    def improved(self, other: Choice) -> Choice:
        """Return this choice, with the other's blocks where their error is smaller."""
        better = self.error > other.error
        mine, theirs = vars(self), vars(other)
        return Choice(**{name: np.where(better, theirs[name], mine[name]) for name in mine})
