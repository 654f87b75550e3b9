"""Implements ``int8-absmax`` and ``int8-zp``: 8-bit codes with a scale, and a zero point, per row, group or tensor.

``group`` says which elements share a scale: ``row`` (the default), ``tensor``, or a number of consecutive elements of a
row, whose last group may be short. The planes are ``codes`` in the tensor's shape, ``scale`` f32 and, for ``int8-zp``,
``zero_point`` u8; these two have the tensor's shape with the number of groups in place of the last dimension, which is
1 for ``row``; for ``tensor`` they have shape [1].

All arithmetic is float32, rounding after each operation, ``rint`` to nearest with ties to even::

    int8-absmax   scale = max|x| / 127
                  code  = rint(x * (1 / scale))              i8, x ~ code * scale

    int8-zp       scale = (max(x, 0) - min(x, 0)) / 255
                  zero  = rint(-min(x, 0) / scale)
                  code  = rint(x * (1 / scale)) + zero       u8, x ~ (code - zero) * scale

Zero point and code of ``int8-zp`` are clipped to 0..255. Zero is always exact. A scale below 2^-126 would lose bits,
and its inverse could overflow: such a group, like one of zeros, gets scale 0 and codes 0 (and zero point 0). With a
scale above 2^119 decoding could overflow.

The formulas are those of torch's min-max observers (which keep the scale above an epsilon) and of
``torch.fake_quantize_per_channel_affine`` and its per-tensor twin, bit for bit. ``torch.quantize_per_tensor`` and
``per_channel`` give the same codes for ``int8-absmax``; a zero point they add before rounding, fused or not depending
on the processor, so that a value next to a tie may round the other way. See Jacob et al., Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018.

Error: at most ``scale * (1/2 + 2^-13)``, whatever the source's dtype; in a group stored as zeros, below 2^-118. Bits
per weight: 8 + 32 / G for ``int8-absmax`` and 8 + 40 / G for ``int8-zp``, with G elements per scale.
A value that is not finite, or a group that needs a scale above 2^119, raises a SchemeError.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import DTYPES, to_float32
from ..errors import SchemeError
from .base import GROUPS, ROW, TENSOR, Planes, PlaneSpec, Rows, Scheme, bad_scales, check_weights, matrix
from .int8 import LEAST_CODE

GROUP_SIZES = range(16, 65536 + 1, 16)
LEAST_SCALE = np.float32(2.0**-126)  # the smallest normal float32
LARGEST_SCALE = np.float32(2.0**119)  # times any code (448 at most) it is finite
_PIECE_ELEMENTS = 1 << 18  # elements processed at a time: their float32 copies stay in cache


@dataclass(frozen=True)
class Grouped(Scheme):
    """A base class that implements schemes with one code per element and a float32 scale per group.

    A subclass computes the numbers of a group (its ``steps``: scale, zero point) from its lowest and highest value,
    codes from values, and values from codes. ``steps`` are in the order of ``step_planes``.
    """

    words = {"group": GROUPS}
    codes_dtype: ClassVar[str]
    sizes: ClassVar[Container[int]] = ()  # groups allowed besides ``row`` and ``tensor``
    step_planes: ClassVar[dict[str, str]] = {"scale": "f32"}  # role -> dtype

    group: int = ROW

    def __post_init__(self) -> None:
        if self.group not in (ROW, TENSOR) and self.group not in self.sizes:
            numbers = " or a multiple of 16 from 16 to 65536" if self.sizes else ""
            raise self.refuse(f"{self.name}: group {self.group}, one of row, tensor{numbers}")

    @abstractmethod
    def steps(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the numbers of groups whose values lie in ``low`` to ``high``, f32, a range that includes zero."""

    @abstractmethod
    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        """Quantize float32 ``values``; returns codes in any dtype, within the range of ``codes_dtype``."""

    @abstractmethod
    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        """Return the float32 values that codes stand for."""

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row, a short one at the end included; 1 for ``row`` and ``tensor``."""
        return 1 if self.group in (ROW, TENSOR) else -(-columns // self.group)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype, rank=1)
        each = (1,) if self.group == TENSOR else (*shape[:-1], self.groups(shape[-1]))
        steps = (PlaneSpec(role, plane, each) for role, plane in self.step_planes.items())
        return PlaneSpec("codes", self.codes_dtype, shape), *steps

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return self._encoded(array, dtype, self._steps(array, dtype))

    def _steps(self, array: np.ndarray, dtype: str) -> tuple[np.ndarray, ...]:
        """Compute the numbers of groups from their ranges, f32 [rows, groups]; [1, 1] for ``tensor``."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = self.steps(*self._extremes(array.reshape(matrix(array.shape)), dtype))
        if not (steps[0] <= LARGEST_SCALE).all():  # NaN fails this too
            raise SchemeError(f"a value is not finite, or so large that {self.name} needs a scale above 2^119")
        return steps

    def _encoded(self, array: np.ndarray, dtype: str, steps: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        """Round to codes with the numbers of groups, and return all planes."""
        rows = array.reshape(matrix(array.shape))
        codes = np.empty(rows.shape, DTYPES[self.codes_dtype].numpy)
        for piece in pieces(rows):
            spread = (self._spread(step[piece if len(step) > 1 else slice(None)], rows.shape[1]) for step in steps)
            codes[piece] = self.quantized(to_float32(rows[piece], dtype), *spread)
        found = zip(self.step_planes, steps, strict=True)
        flat = {"codes": codes} | {role: step.astype(DTYPES[self.step_planes[role]].numpy) for role, step in found}
        return {spec.role: flat[spec.role].reshape(spec.shape) for spec in self.planes(array.shape, dtype)}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        codes = planes["codes"].reshape(matrix(shape))[rows]
        steps = []
        for role in self.step_planes:
            plane = planes[role]
            each = plane[None] if self.group == TENSOR else plane.reshape(matrix(plane.shape))[rows]
            steps.append(self._spread(each.astype(np.float32), shape[-1]))
        return self.dequantized(codes, *steps)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return self.group != TENSOR

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from bad_scales(planes, "scale")
        scale = planes["scale"]
        if ((scale > 0) & (scale < LEAST_SCALE)).any():
            yield "scale", "a scale is below 2^-126, where groups are stored as zeros"
        if (scale > LARGEST_SCALE).any():
            yield "scale", "a scale is above 2^119, where decoding could overflow"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        rows = planes["codes"].reshape(matrix(shape))
        steps = [planes[role].reshape(matrix(planes[role].shape)) for role in self.step_planes]
        scale, used = steps[0], np.zeros(steps[0].shape, np.bool_)
        starts = np.arange(used.shape[1]) * self.group if used.shape[1] > 1 else np.zeros(1, np.intp)
        for piece in pieces(rows):
            at = slice(None) if self.group == TENSOR else piece
            zeros = self.are_zero(rows[piece], *(self._spread(step[at], rows.shape[1]) for step in steps[1:]))
            found = np.logical_or.reduceat(~zeros, starts, axis=1)
            used[at] |= found.any(axis=0) if self.group == TENSOR else found
        if scale[~used].any():
            yield "scale", "a group without a code but that of 0 has a scale"
        if used[scale == 0].any():
            yield "codes", "a code under a scale of 0 does not stand for 0"

    def are_zero(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        """Tell which codes stand for zero, bool, given the steps of their groups but the scale."""
        return codes == 0

    def _extremes(self, rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Return each group's lowest and highest value, zero included, f32 [rows, groups]; [1, 1] for ``tensor``."""
        groups = self.groups(rows.shape[1])
        low, high = np.zeros((2, len(rows), groups), np.float32)
        starts = np.arange(groups) * self.group if groups > 1 else np.zeros(1, np.intp)
        for piece in pieces(rows):
            values = to_float32(rows[piece], dtype)
            np.minimum(np.minimum.reduceat(values, starts, axis=1), 0, out=low[piece])
            np.maximum(np.maximum.reduceat(values, starts, axis=1), 0, out=high[piece])
        if self.group == TENSOR:
            return low.min(initial=0).reshape(1, 1), high.max(initial=0).reshape(1, 1)
        return low, high

    def _spread(self, step: np.ndarray, columns: int) -> np.ndarray:
        """Expand one number per group to one per column, or to a single column if a row is one group."""
        return step if self.group in (ROW, TENSOR) else np.repeat(step, self.group, axis=1)[:, :columns]


@dataclass(frozen=True)
class Int8Absmax(Grouped):
    """Store signed codes around zero: the largest magnitude gets code 127 or -127."""

    name: ClassVar[str] = "int8-absmax"
    codes_dtype = "i8"
    sizes = GROUP_SIZES

    def steps(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        return (usable(np.maximum(-low, high) / np.float32(127)),)

    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        values *= inverse(steps[0])
        return np.rint(values, out=values)

    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        return codes * steps[0]

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        if planes["codes"].min(initial=0) < LEAST_CODE:
            yield "codes", "a code is -128"
        yield from super().other_forms(planes, shape)


@dataclass(frozen=True)
class Int8ZeroPoint(Grouped):
    """Store unsigned codes from the lowest value to the highest; one of them, the zero point, stands for zero."""

    name: ClassVar[str] = "int8-zp"
    codes_dtype = "u8"
    sizes = GROUP_SIZES
    step_planes = {"scale": "f32", "zero_point": "u8"}

    def steps(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        scale = usable((high - low) / np.float32(255))
        return scale, np.clip(np.rint(-low / divisor(scale)), 0, 255)

    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        scale, zero = steps
        values *= inverse(scale)
        np.rint(values, out=values)
        values += zero
        return np.clip(values, 0, 255, out=values)

    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        scale, zero = steps
        values = codes - zero
        values *= scale
        return values

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        if planes["zero_point"][planes["scale"] == 0].any():
            yield "zero_point", "a zero point is not zero where the scale is"

    def are_zero(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        return codes == steps[0]


def usable(scale: np.ndarray) -> np.ndarray:
    """Replace scales that are too small to divide by with zero, f32."""
    return np.where(scale < LEAST_SCALE, np.float32(0), scale)


def inverse(scale: np.ndarray) -> np.ndarray:
    """Return ``1 / scale``, or zero where the scale is zero, f32."""
    return np.float32(1) / divisor(scale)


def divisor(scale: np.ndarray) -> np.ndarray:
    """Replace zero scales with infinity, f32: anything divided by it is zero."""
    return np.where(scale == 0, np.float32(np.inf), scale)


def pieces(rows: np.ndarray) -> Iterator[slice]:
    """Yield slices of the rows of a matrix that are processed at a time; none if there are no elements."""
    step = max(1, _PIECE_ELEMENTS // max(rows.shape[1], 1))
    return (slice(start, start + step) for start in range(0, len(rows) if rows.size else 0, step))
