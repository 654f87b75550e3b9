"""int8-absmax and int8-zp: 8-bit codes with a scale, and a zero point, for every row, group of a row, or tensor.

``group`` says what shares a scale: ``row`` (the default), ``tensor``, or a number of consecutive elements of a row, of
which the last group may be short. The planes are ``codes`` in the tensor's shape, ``scale`` f32 and, of ``int8-zp``,
``zero_point`` u8; these two have the tensor's shape with the number of groups in the place of the last dimension, which
is 1 for ``row``; for ``tensor`` they have shape [1].

All arithmetic is float32, one rounding each operation, ``rint`` to nearest with ties to even::

    int8-absmax   scale = max|x| / 127
                  code  = rint(x * (1 / scale))              i8, x ~ code * scale

    int8-zp       scale = (max(x, 0) - min(x, 0)) / 255
                  zero  = rint(-min(x, 0) / scale)
                  code  = rint(x * (1 / scale)) + zero       u8, x ~ (code - zero) * scale

both clipped to 0..255 for ``int8-zp``. Zero is always exact. A scale below 2^-126 would lose bits, and its inverse
could overflow: such a group, like one of zeros, gets scale 0 and codes 0 (and zero point 0). Above 2^119 decoding could
overflow.

The formulas are those of torch's min-max observers (there the scale is kept above an epsilon) and of
``torch.fake_quantize_per_channel_affine`` and its per-tensor twin, bit for bit. ``torch.quantize_per_tensor`` and
``per_channel`` give the same codes for ``int8-absmax``; with a zero point they add it before they round, fused or not
as the processor has it, and a value next to a tie may fall the other way. See Jacob et al., Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018.

Error: at most ``scale * (1/2 + 2^-13)`` around the source, whatever its dtype; in a group stored as zeros, below
2^-118. Bits per weight: 8 + 32 / G for ``int8-absmax`` and 8 + 40 / G for ``int8-zp``, with G elements to a scale.
A value that is not finite, or a group that needs a scale above 2^119, is a SchemeError.
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

GROUP_SIZES = range(16, 65536 + 1, 16)
LEAST_SCALE = np.float32(2.0**-126)  # the smallest normal float32
LARGEST_SCALE = np.float32(2.0**119)  # its product with a code, 448 at most, is finite
_PIECE = 1 << 18  # elements worked on at a time: their float32 copies stay in cache


@dataclass(frozen=True)
class Grouped(Scheme):
    """What schemes with one code an element and a float32 scale a group have in common.

    A subclass says how the numbers of a group follow from its lowest and highest value, and how codes follow from
    values and back. ``steps`` are those numbers, in the order of ``step_planes``.
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
        """The numbers of groups whose values lie in ``low`` to ``high``, f32, zero included."""

    @abstractmethod
    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        """Codes of float32 ``values``, as numbers of any dtype that fit ``codes_dtype``."""

    @abstractmethod
    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        """The float32 values that codes stand for."""

    def groups(self, columns: int) -> int:
        """Number of groups of a row, the short one at the end included; 1 if a row shares its scale."""
        return 1 if self.group in (ROW, TENSOR) else -(-columns // self.group)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype, rank=1)
        each = (1,) if self.group == TENSOR else (*shape[:-1], self.groups(shape[-1]))
        steps = (PlaneSpec(role, plane, each) for role, plane in self.step_planes.items())
        return PlaneSpec("codes", self.codes_dtype, shape), *steps

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        rows = array.reshape(matrix(array.shape))
        codes = np.empty(rows.shape, DTYPES[self.codes_dtype].numpy)
        with np.errstate(over="ignore", invalid="ignore"):
            steps = self.steps(*self._extremes(rows, dtype))
        if not (steps[0] <= LARGEST_SCALE).all():  # not true of NaN either
            raise SchemeError(f"a value is not finite, or so large that {self.name} needs a scale above 2^119")
        for piece in _pieces(rows):
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

    def _extremes(self, rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of every group, or of all, f32 [rows, groups] or [1, 1], zero included."""
        groups = self.groups(rows.shape[1])
        low, high = np.zeros((2, len(rows), groups), np.float32)
        starts = np.arange(groups) * self.group if groups > 1 else np.zeros(1, np.intp)
        for piece in _pieces(rows):
            values = to_float32(rows[piece], dtype)
            np.minimum(np.minimum.reduceat(values, starts, axis=1), 0, out=low[piece])
            np.maximum(np.maximum.reduceat(values, starts, axis=1), 0, out=high[piece])
        if self.group == TENSOR:
            return low.min(initial=0).reshape(1, 1), high.max(initial=0).reshape(1, 1)
        return low, high

    def _spread(self, step: np.ndarray, columns: int) -> np.ndarray:
        """A number a group as a number a column, or as one for all columns."""
        return step if self.group in (ROW, TENSOR) else np.repeat(step, self.group, axis=1)[:, :columns]


@dataclass(frozen=True)
class Int8Absmax(Grouped):
    """Signed codes around zero: the largest magnitude is code 127 or -127."""

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


@dataclass(frozen=True)
class Int8ZeroPoint(Grouped):
    """Unsigned codes from the lowest value to the highest, one of which, the zero point, stands for zero."""

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


def usable(scale: np.ndarray) -> np.ndarray:
    """f32: the scales, zero in the place of those that are too small to divide by."""
    return np.where(scale < LEAST_SCALE, np.float32(0), scale)


def inverse(scale: np.ndarray) -> np.ndarray:
    """f32: ``1 / scale``, and zero for zero."""
    return np.float32(1) / divisor(scale)


def divisor(scale: np.ndarray) -> np.ndarray:
    """f32: the scales, infinity in the place of zero: it divides anything to zero."""
    return np.where(scale == 0, np.float32(np.inf), scale)


def _pieces(rows: np.ndarray) -> Iterator[slice]:
    """Stretches of the rows of a matrix that are worked on at a time; none where there are no elements."""
    step = max(1, _PIECE // max(rows.shape[1], 1))
    return (slice(start, start + step) for start in range(0, len(rows) if rows.size else 0, step))
