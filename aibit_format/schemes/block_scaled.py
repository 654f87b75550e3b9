"""Implements what schemes share whose values are codes of a dtype times the scale of a block.

A block is ``rows`` by ``columns`` elements of the last two dimensions [N, K] of a tensor; 0 stands for the whole
dimension. Blocks at the ends may be short, and none spans two matrices of a tensor of more dimensions. The planes:

- ``codes`` in the tensor's shape, packed if their dtype is smaller than a byte;
- ``scale``, and what else a block has, in the shape [..., ceil(N / rows), ceil(K / columns)], their *grid*;
- numbers of a whole matrix, such as ``global_scale`` f32: [1], or [..., 1] in a tensor of more dimensions.

Values are computed in float32, rounding after each operation; beyond float32's largest value they are infinite, as in
the libraries that read such weights. ``dequantized`` is the same code for arrays of numpy and tensors of torch.

The encoders find the numbers of a block from its lowest and highest value, or search for them (``searched``), and round
to nearest with the numbers that are stored. A block in which every code stands for zero has scale 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import DTYPES, from_float32, largest_of, nearest_codes, to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, check_importance, check_weights, matrix
from .packing import pack, unpack
from .scale_grids import floats
from .scale_search import NUMPY, Grid, Groups, Pair
from .scale_search import Steps as SearchSteps
from .searched import Numbers, Searched, fits, groups_of

ALL = 0  # rows or columns of a block: the whole dimension
LARGEST_BLOCK = 65536
LARGEST_VALUE = np.float32(2.0**120)  # rounding a larger one could overflow
_PIECE_ELEMENTS = 1 << 18  # elements processed at a time: their float32 copies stay in cache
_CHECKED = 1 << 20  # codes checked at a time
_LEAST = {name: np.float32(2.0**exponent) for name, exponent in (("f16", -24), ("bf16", -133), ("f32", -149))}

Steps = Mapping[str, Any]  # role -> numbers, f32 [rows, blocks of a row] or [rows, 1]: an array or a tensor
Spread = Callable[[Any], Any]  # expands numbers of blocks to numbers of columns


@dataclass(frozen=True)
class BlockScaled(Searched):
    """A base class for codes with a scale per block. A subclass names dtypes and blocks, and fits numbers to values."""

    signed: ClassVar[bool] = False  # whether scales may be negative

    @property
    @abstractmethod
    def codes(self) -> str:
        """Return the dtype of the codes."""

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """Return the rows and the columns of a block."""

    @property
    @abstractmethod
    def steps(self) -> dict[str, str]:
        """Return the roles and dtypes of the planes that have a number for each block."""

    @property
    def whole(self) -> dict[str, str]:
        """Return the roles and dtypes of the planes that have a number for each matrix."""
        return {}

    @abstractmethod
    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the numbers of blocks whose values lie in ``low`` to ``high``, a range that includes zero.

        Args:
            low, high: f32 [matrices, rows of blocks, blocks of a row].

        Returns:
            The planes of ``steps``, in the shape of ``low``, and those of ``whole``, [matrices].
        """

    def multiplier(self, steps: Steps) -> Any:
        """Return what the codes of each block are multiplied by, from numbers in float32."""
        return steps["scale"]

    def dequantized(self, values: Any, steps: Steps, spread: Spread) -> Any:
        """Return what codes stand for, given as float32 ``values`` [rows, columns], which are overwritten."""
        values *= spread(self.multiplier(steps))
        return values

    def quantized(self, values: np.ndarray, steps: Steps, spread: Spread) -> np.ndarray:
        """Round float32 ``values`` [rows, columns], which are overwritten, to codes u8."""
        largest = np.float32(largest_of(self.codes))
        values /= spread(self.multiplier(steps))
        return nearest_codes(np.clip(values, -largest, largest, out=values), self.codes)

    # Shapes, and which block an element is in.

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of planes with a number for each block."""
        rows, columns = self.sizes(shape)
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the rows and columns of a block, 1 or more, of a tensor of this shape."""
        rows, columns = self.block
        return rows or max(shape[-2], 1), columns or max(shape[-1], 1)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        grid = self.grid(shape)
        steps = (PlaneSpec(role, plane, grid) for role, plane in self.steps.items())
        return PlaneSpec("codes", self.codes, shape), *steps, *self.others(shape)

    def others(self, shape: tuple[int, ...]) -> tuple[PlaneSpec, ...]:
        """Return the planes that belong to no block."""
        return tuple(PlaneSpec(role, plane, (*shape[:-2], 1)) for role, plane in self.whole.items())

    def grid_rows(self, shape: tuple[int, ...], rows: Any) -> Any:
        """Return the rows of the grid, seen as a matrix, that rows of the tensor are in: i64 indices, both."""
        count, size = shape[-2], self.sizes(shape)[0]
        return rows // max(count, 1) * -(-count // size) + rows % max(count, 1) // size

    def spread(self, step: np.ndarray, planes: Planes, columns: int) -> np.ndarray:
        """Expand numbers [rows, blocks of a row] to one for each column, or to a single one if that is for all."""
        return step if step.shape[1] <= 1 else np.repeat(step, self.block[1], axis=1)[:, :columns]

    # Decoding and encoding.

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        count, columns = matrix(shape)
        stored = DTYPES[self.codes]
        packed = planes["codes"].reshape(stored.stored((count, columns)))[rows]
        values = to_float32(unpack(packed, stored.bits, columns, "little"), self.codes)
        with np.errstate(over="ignore"):
            steps = self._numbers(planes, shape, rows)
            return self.dequantized(values, steps, lambda step: self.spread(step, planes, columns))

    def _numbers(self, planes: Planes, shape: tuple[int, ...], rows: Rows) -> dict[str, np.ndarray]:
        """Return the numbers that go with rows, f32: of their blocks [rows, blocks of a row], of matrices [rows, 1]."""
        count, grid = matrix(shape)[0], matrix(self.grid(shape))
        chosen: Rows = rows if self.sizes(shape)[0] == 1 else self.grid_rows(shape, np.arange(count)[rows])
        found = {role: to_float32(planes[role].reshape(grid)[chosen], plane) for role, plane in self.steps.items()}
        for role, plane in self.whole.items():
            matrices: np.ndarray = np.arange(count)[rows] // max(shape[-2], 1)
            found[role] = to_float32(planes[role].reshape(-1, 1)[matrices], plane)
        return found

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: SearchSteps = NUMPY
    ) -> dict[str, np.ndarray]:
        shape, kind = array.shape, DTYPES[self.codes]
        specs = self.planes(shape, dtype)
        rows = array.reshape(matrix(shape))
        planes = self.numbers(rows, dtype, shape)
        if self.is_searched(importance) and array.size and fits(math.prod(self.sizes(shape))):
            if importance is not None:
                check_importance(importance, shape)
            self._improve(planes, rows, dtype, shape, importance, steps)
        planes["codes"] = np.empty(kind.stored(rows.shape), np.uint8)
        used = np.zeros((len(rows), self.grid(shape)[-1]), np.bool_)
        for piece in pieces(rows):
            numbers = self._numbers(planes, shape, piece)
            values = to_float32(rows[piece], dtype)
            codes = self.quantized(values, numbers, lambda step: self.spread(step, planes, rows.shape[1]))
            planes["codes"][piece] = pack(codes, kind.bits, "little")
            if kind.is_float:
                used[piece] = self._used(codes, shape)
        if kind.is_float:
            idle = ~self._by_block(np.logical_or, used, shape)
            planes["scale"][idle.reshape(planes["scale"].shape)] = _one(self.steps["scale"])
        return {spec.role: planes[spec.role].reshape(spec.stored) for spec in specs}

    def numbers(self, rows: np.ndarray, dtype: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the planes for values but their codes, of any shapes with the right numbers of elements.

        Raises:
            SchemeError: a value is not finite, or so large that its code could stand for infinity.
        """
        low, high = self._extremes(rows, dtype, shape)
        self.check_range(magnitude(low, high))
        grid = (math.prod(shape[:-2]), *self.grid(shape)[-2:])
        return self.fit(low.reshape(grid), high.reshape(grid))

    # The search for better numbers.

    @property
    def grid_of_codes(self) -> Grid:
        return floats(self.codes)

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        return [{**plain, "scale": each} for each in near_scales(scale, self.steps["scale"])]

    def real(self, numbers: Numbers) -> Pair:
        steps = {role: to_float32(numbers[role], kind) for role, kind in {**self.steps, **self.whole}.items()}
        scale = self.multiplier(steps)
        return scale, np.zeros(scale.shape, np.float32)

    def _improve(
        self,
        planes: dict[str, np.ndarray],
        rows: np.ndarray,
        dtype: str,
        shape: tuple[int, ...],
        importance: np.ndarray | None,
        steps: SearchSteps,
    ) -> None:
        """Replace the numbers of blocks by such with a smaller weighted error."""
        width, per_matrix = self.grid(shape)[-1], math.prod(self.grid(shape)[-2:])
        found = {role: planes[role].reshape(-1) for role in self.steps}
        for row, groups in self._groups(rows, dtype, shape, importance):
            at = np.arange(row * width, row * width + len(groups.values))
            plain = {role: plane[at] for role, plane in found.items()}
            plain |= {role: planes[role].reshape(-1)[at // per_matrix] for role in self.whole}
            better = self.improved(groups, plain, steps)
            for role, plane in found.items():
                plane[at] = better[role]

    def _groups(
        self, rows: np.ndarray, dtype: str, shape: tuple[int, ...], importance: np.ndarray | None
    ) -> Iterator[tuple[int, Groups]]:
        """Yield the elements of blocks, and the row of the grid in which they begin."""
        height, size = self.sizes(shape)
        each = importance is not None and importance.ndim == 2
        if height == 1:
            for piece in pieces(rows):
                weights = importance[piece] if importance is not None and each else importance
                yield piece.start, groups_of(rows[piece], dtype, size, weights)
            return
        for row, start in enumerate(_starts(shape, height)):
            part = slice(start, min(start + height, start // shape[-2] * shape[-2] + shape[-2]))
            values = _side_by_side(rows[part], size)
            weights = None
            if importance is not None:
                weights = importance[part] if each else np.broadcast_to(importance, rows[part].shape)
                weights = _side_by_side(weights, size)
            yield row, groups_of(values, dtype, len(rows[part]) * size, weights)

    def check_range(self, largest: np.ndarray) -> None:
        """Raise a SchemeError unless magnitudes are finite and far enough from float32's largest value."""
        if not (largest <= LARGEST_VALUE).all():  # NaN fails this too
            raise SchemeError(f"a value is not finite, or beyond 2^120, where {self.name} could overflow")

    def _extremes(self, rows: np.ndarray, dtype: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return each block's lowest and highest value, zero included, f32 [rows of the grid, blocks of a row]."""
        size = self.sizes(shape)[1]
        low, high = np.zeros((2, len(rows), self.grid(shape)[-1]), np.float32)
        starts = np.arange(low.shape[1]) * size
        for piece in pieces(rows):
            values = to_float32(rows[piece], dtype)
            np.minimum(np.minimum.reduceat(values, starts, axis=1), 0, out=low[piece])
            np.maximum(np.maximum.reduceat(values, starts, axis=1), 0, out=high[piece])
        return self._by_block(np.minimum, low, shape), self._by_block(np.maximum, high, shape)

    def _by_block(self, ufunc: np.ufunc, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Reduce numbers [rows, blocks of a row] over the rows of each block: [rows of the grid, blocks of a row]."""
        size = self.sizes(shape)[0]
        if size == 1 or not len(numbers):
            return numbers
        starts = np.arange(0, shape[-2], size)
        each = numbers.reshape(len(numbers) // shape[-2], shape[-2], numbers.shape[1])
        return ufunc.reduceat(each, starts, axis=1).reshape(matrix(self.grid(shape)))

    def _used(self, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Tell which blocks of some rows have a code of a float that is not zero, bool [rows, blocks of a row]."""
        sign = np.uint8(1 << (DTYPES[self.codes].bits - 1))
        starts = np.arange(self.grid(shape)[-1]) * self.sizes(shape)[1]
        return np.logical_or.reduceat((codes & (sign - np.uint8(1))) != 0, starts, axis=1)

    # Properties and checks.

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return self.block[0] == 1 and not self.whole

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        return max(self.block[0], 1)

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        for role, dtype in {**self.steps, **self.whole}.items():
            yield from bad_floats(role, planes[role], dtype, "a " + role.replace("_", " "))
        for role in () if self.signed else ("scale", *self.whole):
            yield from negative(role, planes[role], {**self.steps, **self.whole}[role])

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        yield from bad_floats("codes", planes["codes"], self.codes, "a code")

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        if not DTYPES[self.codes].is_float:
            return
        count, columns = matrix(shape)
        stored = DTYPES[self.codes]
        packed = planes["codes"].reshape(stored.stored((count, columns)))
        used = np.zeros((count, self.grid(shape)[-1]), np.bool_)
        for piece in pieces(np.broadcast_to(np.uint8(0), (count, columns))):
            used[piece] = self._used(unpack(packed[piece], stored.bits, columns, "little"), shape)
        idle = ~self._by_block(np.logical_or, used, shape)
        if (planes["scale"].reshape(idle.shape)[idle] != _one(self.steps["scale"])).any():
            yield "scale", "a block of zeros has another scale than 1"


def check_block(scheme: Scheme, **sizes: int) -> None:
    """Raise the error of ``Scheme.refuse`` unless these rows, columns or groups are 0 (all) to 65536."""
    for name, size in sizes.items():
        if not ALL <= size <= LARGEST_BLOCK:
            raise scheme.refuse(f"{scheme.name}: {name} {size}, at most {LARGEST_BLOCK}")


def check_word(scheme: Scheme, **choices: int) -> None:
    """Raise the error of ``Scheme.refuse`` unless the values of parameters are ones that ``words`` has words for."""
    for name, value in choices.items():
        words = scheme.words[name]
        if value not in words.values():
            raise scheme.refuse(f"{scheme.name}: {name} {value}, one of {', '.join(words)}")


def dtype_words(*names: str) -> dict[str, int]:
    """Return the numbers of dtypes by their names, which are the words for a parameter that is a dtype."""
    return {name: DTYPES[name].code for name in names}


def dtype_of(words: Mapping[str, int], number: int) -> str:
    """Return the name of a dtype by its number, one of those that ``dtype_words`` gave."""
    return next(name for name, code in words.items() if code == number)


def magnitude(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of values in ``low`` to ``high``, f32, ranges that include zero."""
    return np.maximum(np.abs(low), high)


def stored_scale(scale: np.ndarray, dtype: str) -> np.ndarray:
    """Round scales f32 to ``dtype``, to nearest, but positive ones not to zero. Zero, the scale of nothing, becomes 1.

    Raises:
        SchemeError: a scale is beyond the dtype's largest value.
    """
    return from_float32(np.where(scale == 0, np.float32(1), np.maximum(scale, _LEAST[dtype])), dtype)


def near_scales(scale: np.ndarray, dtype: str) -> list[np.ndarray]:
    """Round scales, finite and not zero, to such as are stored: to nearest, or to the powers of two on both sides."""
    if dtype == "f8_e8m0":
        below = (np.abs(scale).view(np.uint32) >> np.uint32(23)).astype(np.int32)
        return [(below + step).clip(0, 254).astype(np.uint8) for step in (0, 1)]
    least, most = _LEAST[dtype], np.float32(65504) if dtype == "f16" else LARGEST_VALUE
    return [from_float32(np.copysign(np.abs(scale).clip(least, most), scale), dtype)]


def _starts(shape: tuple[int, ...], height: int) -> Iterator[int]:
    """Yield the rows in which blocks of this height begin, in each of the matrices of a shape."""
    return (m * shape[-2] + i for m in range(math.prod(shape[:-2])) for i in range(0, shape[-2], height))


def _side_by_side(rows: np.ndarray, size: int) -> np.ndarray:
    """Lay blocks of all of these rows and ``size`` columns out one after another, in one row [1, ...], zeros added."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)))
    return padded.reshape(len(rows), -1, size).swapaxes(0, 1).reshape(1, -1)


def bad_floats(role: str, plane: np.ndarray, dtype: str, what: str) -> Iterator[tuple[str, str]]:
    """Yield the problem of a plane of floats of which one is not finite; all integers are."""
    if dtype in ("f8_e4m3", "f8_e5m2", "f8_e8m0"):
        first = {"f8_e4m3": 0x7F, "f8_e5m2": 0x7C, "f8_e8m0": 0xFF}[dtype]
        flat, mask = plane.reshape(-1), np.uint8(0xFF if dtype == "f8_e8m0" else 0x7F)
        if any(((flat[i : i + _CHECKED] & mask) >= first).any() for i in range(0, flat.size, _CHECKED)):
            yield role, f"{what} is NaN" if dtype != "f8_e5m2" else f"{what} is not finite"
    elif dtype in ("f16", "bf16", "f32") and not np.isfinite(to_float32(plane, dtype)).all():
        yield role, f"{what} is not finite"


def negative(role: str, plane: np.ndarray, dtype: str) -> Iterator[tuple[str, str]]:
    """Yield the problem of a plane of scales of which one is negative; minus zero is."""
    if dtype != "f8_e8m0" and np.signbit(to_float32(plane, dtype)).any():
        yield role, "a scale is negative"


def _one(dtype: str) -> np.ndarray:
    """Return 1 in a dtype of scales, as it is stored, in an array [1]."""
    return np.full(1, 127, np.uint8) if dtype == "f8_e8m0" else from_float32(np.ones(1, np.float32), dtype)


def pieces(rows: np.ndarray) -> Iterator[slice]:
    """Yield slices of the rows of a matrix that are processed at a time; none if there are no elements."""
    step = max(1, _PIECE_ELEMENTS // max(rows.shape[1], 1))
    return (slice(start, start + step) for start in range(0, len(rows) if rows.size else 0, step))
