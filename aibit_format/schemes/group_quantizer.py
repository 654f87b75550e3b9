"""Finds scales and zero points of ``int4-group`` and ``int-group`` for GPTQ, and puts codes into their planes.

A group's scale, and zero point or bias, are searched for in two steps. First with real scales: from some of them, and
ends of the range that are cut off, codes are rounded, and the scale, or scale and bias, solved for them by weighted
least squares; zero points that are codes stay whole numbers. Then with numbers as they are stored: those of plain
rounding, and those near to what was found, whose scale is solved again for their codes. Of all the one with the least
weighted error is taken, and of equal ones the first.

Arrays are f32 [columns, rows] or [rows]: every sum is in the order of the columns, on any processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from ..dtypes import from_float32, to_float32
from .int4_group import Int4Group
from .int_group import CODE, FLOAT, NONE, IntGroup
from .packing import pack, pack_nibbles

_LEAST_WEIGHT = np.float32(2.0**-20)  # relative to the largest of a group, so that no column is left to chance
_LARGEST = {"f16": np.float32(65504), "bf16": np.float32(2.0**120), "f32": np.float32(2.0**120)}
_LEAST = np.float32(2.0**-24)  # of the scales that are tried
_REPEATS, _ROUNDS = 2, 1
# Into how many steps more than codes the range is cut, and how many of them are cut off below. Where one column matters
# more than all others together, as the one of a massive activation does, scales far from that of the range are best.
_CUTS = (
    (-1, -0.5), (0, 0), (1, 0), (1, 0.5), (1, 1), (2, 0.5), (2, 1), (2, 1.5), (3, 1), (3, 1.5), (3, 2), (4, 1), (4, 2),
    (5, 2), (6, 1.5), (6, 3), (8, 2), (8, 4), (12, 6), (16, 8),
)  # fmt: skip
_TOPS = (
    -1.0,
    -0.5,
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    5.0,
    6.0,
    8.0,
)  # how far past the last code the largest value may be

Numbers = dict[str, np.ndarray]  # role -> what the groups of rows have, in storage, [rows]


@dataclass(frozen=True)
class GroupQuantizer:
    """Quantize rows of groups; a span is one group.

    Args:
        scheme: without an order of columns.
        bits: of a code.
        group: columns of a group.
        zero: what stands for zero: one of ``int_group.ZEROS``.
        dtype: of scales.
    """

    scheme: Int4Group | IntGroup
    bits: int
    group: int
    zero: int
    dtype: str

    book = None

    @property
    def span(self) -> int:
        return self.group

    @property
    def high(self) -> int:
        return (1 << self.bits) - 1

    def find(self, values: np.ndarray, weights: np.ndarray) -> Numbers:
        values = np.ascontiguousarray(values)
        planes = self.scheme.encode(values, "f32")  # checks the values, too
        plain = {role: planes[role].reshape(-1) for role in planes if role != "codes"}
        largest = weights.max(initial=0)
        relative = weights / largest if largest > 0 else np.ones_like(weights)
        weight = np.maximum(relative, _LEAST_WEIGHT).astype(np.float32)[:, None]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self._improved(values.T.copy(), weight, plain)

    def parameters(self, found: Numbers) -> np.ndarray:
        return np.stack(self._real(found))[:, None]

    def planes(self, codes: np.ndarray, found: Sequence[Numbers]) -> dict[str, np.ndarray]:
        packed = pack_nibbles(codes) if isinstance(self.scheme, Int4Group) else pack(codes, self.bits, "little")
        return {"codes": packed} | {role: np.stack([each[role] for each in found], axis=1) for role in found[0]}

    def _real(self, numbers: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what stored numbers stand for: scale, zero and offset."""
        scale = to_float32(numbers["scale"], self.dtype)
        nothing = np.zeros_like(scale)
        if self.zero == NONE:
            return scale, nothing + np.float32(1 << (self.bits - 1)), nothing
        if self.zero == CODE:
            return scale, numbers["zero_point"].astype(np.float32), nothing
        if self.zero == FLOAT:
            return scale, to_float32(numbers["zero_point"], self.dtype), nothing
        return scale, nothing, to_float32(numbers["bias"], self.dtype)

    def _codes(self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        codes = np.rint(values / np.where(scale == 0, np.float32(1), scale) + zero)
        return np.minimum(np.maximum(codes, np.float32(0), out=codes), np.float32(self.high), out=codes)

    def _improved(self, values: np.ndarray, weight: np.ndarray, plain: Numbers) -> Numbers:
        """Return numbers with which the weighted error is at most that of the ``plain`` ones."""
        best, error = plain, np.full(values.shape[1], np.inf, np.float32)
        fit = self._fit_scale if self.zero in (NONE, CODE) else self._fit_both
        tries = [plain, *self._near(*fit(values, weight), plain)]
        for turn in range(1 + _ROUNDS):
            refitted: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
            for numbers in tries:
                scale, zero, offset = self._real(numbers)
                levels = self._codes(values - offset, scale, zero) - zero
                weighted, rest = weight * levels, values - offset - levels * scale
                found = np.add.reduce(weight * rest * rest, axis=0)
                better = found < error
                best = {role: np.where(better, numbers[role], best[role]) for role in best}
                error = np.where(better, found, error)
                scale = np.add.reduce(weighted * (values - offset), axis=0) / np.add.reduce(weighted * levels, axis=0)
                refitted.append((better, scale, zero - offset / scale))
            if turn == _ROUNDS:
                break
            next_scale, next_zero = np.zeros((2, values.shape[1]), np.float32)
            for better, scale, zero in refitted:
                next_scale, next_zero = np.where(better, scale, next_scale), np.where(better, zero, next_zero)
            tries = list(self._near(next_scale, next_zero, plain))
        return best

    def _near(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Iterator[Numbers]:
        """Yield numbers as they are stored near to real ones; where the scale is none, the plain ones."""
        usable = np.isfinite(scale) & (np.abs(scale) >= _LEAST) & (np.abs(scale) <= _LARGEST[self.dtype])
        usable &= np.isfinite(zero)
        scale, zero = np.where(usable, scale, np.float32(1)), np.where(usable, zero, np.float32(0))
        stored = np.where(usable, from_float32(scale, self.dtype), plain["scale"])
        if self.zero == NONE:
            yield {"scale": stored}
        elif self.zero == CODE:
            for each in (np.floor(zero), np.ceil(zero)):
                codes = each.clip(0, self.high).astype(np.uint8)
                yield {"scale": stored, "zero_point": np.where(usable, codes, plain["zero_point"])}
        else:
            role = "zero_point" if self.zero == FLOAT else "bias"
            real = zero if self.zero == FLOAT else np.float32(0) - zero * scale
            most = _LARGEST[self.dtype]
            held = from_float32(real.clip(-most, most), self.dtype)
            yield {"scale": stored, role: np.where(usable, held, plain[role])}

    def _starts(self, values: np.ndarray, weight: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield scales and zeros to begin with; the last ones give the element that matters most no error."""
        main = _taken(values, weight * values * values)
        if self.zero == NONE:
            top = _taken(values, np.abs(values))
            half = np.float32(1 << (self.bits - 1))
            middle = np.full(top.shape, half)
            for sign, each in product((-1, 1), _TOPS):
                yield top / np.float32(sign * (half + each)), middle
            yield from ((main / (np.rint(main / top * half) + np.float32(more)), middle) for more in (0, 1))
            return
        low, high = values.min(axis=0), values.max(axis=0)
        wide = np.float32(max(1.0, 2.0 ** (self.bits - 4)))
        for more, below in _CUTS:
            step = (high - low) / (np.float32(self.high) + np.float32(more) * wide)
            yield step, self._zero(np.float32(0) - low / step - np.float32(below) * wide)
        for more in (0, 1):
            count = np.rint(np.abs(main) / (high - low) * np.float32(self.high)) + np.float32(more)
            step, code = np.abs(main) / count, np.copysign(count, main)
            zero = self._zero(np.float32(0) - low / step)  # such that the code is one
            yield step, np.minimum(np.maximum(zero, np.float32(0) - code), np.float32(self.high) - code)

    def _zero(self, zero: np.ndarray) -> np.ndarray:
        return np.rint(zero).clip(0, self.high) if self.zero == CODE else zero

    def _fit_scale(self, values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve for the scale alone; the zero is one of those that it begins with, or next to it."""
        gained, scale, zero = (np.full(values.shape[1], start, np.float32) for start in (-1, 1, 0))
        aside = (0, -1, 1, 0) if self.zero == CODE else (0, 0)
        starts = chain(self._starts(values, weight), map(np.float32, aside))
        for start in starts:
            step, first = start if isinstance(start, tuple) else (scale, (zero + start).clip(0, self.high))
            levels = self._codes(values, step, first) - first
            weighted = weight * levels
            explained = np.add.reduce(weighted * values, axis=0)
            found = explained / np.add.reduce(weighted * levels, axis=0)
            better = explained * found > gained
            gained, scale = np.where(better, explained * found, gained), np.where(better, found, scale)
            zero = np.where(better, first, zero)
        return scale, zero

    def _fit_both(self, values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums, weighted_sums = np.add.reduce(weight, axis=0), np.add.reduce(weight * values, axis=0)
        gained, scale, zero = (np.full(values.shape[1], start, np.float32) for start in (-1, 1, 0))
        for start in chain(self._starts(values, weight), [None] * _REPEATS):
            step, first = (scale, zero) if start is None else start
            codes = self._codes(values, step, first)
            weighted = weight * codes
            code = np.add.reduce(weighted, axis=0)
            square, both = np.add.reduce(weighted * codes, axis=0), np.add.reduce(weighted * values, axis=0)
            determinant = sums * square - code * code
            slope = (sums * both - weighted_sums * code) / determinant
            constant = (square * weighted_sums - code * both) / determinant
            gain = slope * both + constant * weighted_sums
            better = (gain > gained) & (slope > 0) & (determinant > sums * square * np.float32(2.0**-20))
            gained, scale = np.where(better, gain, gained), np.where(better, slope, scale)
            zero = np.where(better, np.float32(0) - constant / slope, zero)
        return scale, zero


def _taken(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return of each row the value for which another number is the largest."""
    return np.take_along_axis(values, by.argmax(axis=0)[None], axis=0)[0]


def int4_group_quantizer(scheme: Int4Group, columns: int) -> GroupQuantizer | None:
    """Return the quantizer of ``int4-group``; ``None`` with an order of columns, which comes with a checkpoint."""
    return None if scheme.ordered else GroupQuantizer(
        scheme, 4, scheme.group or columns, NONE if scheme.symmetric else CODE, "f16"
    )  # fmt: skip


def int_group_quantizer(scheme: IntGroup, columns: int) -> GroupQuantizer | None:
    """Return the quantizer of ``int-group``; ``None`` with an order of columns, which comes with a checkpoint."""
    return None if scheme.ordered else GroupQuantizer(
        scheme, scheme.bits, scheme.group or columns, scheme.zero, scheme.steps["scale"]
    )  # fmt: skip
