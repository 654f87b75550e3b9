"""Implements ``int8-dynamic`` and ``int8-static``: 8-bit weights whose layers compute with 8-bit inputs (W8A8).

The weight is that of ``int8-absmax`` with a scale for each row: ``codes`` i8 [N, K] and ``scale`` f32 [N, 1]; leading
dimensions (fused experts ``[E, N, K]``) are kept. The scheme also says to what the inputs of the layer are rounded, so
that products are those of whole numbers.

``int8-dynamic`` quantizes each row of inputs (a token) as it comes, as ``int8-absmax`` does with rows::

    s = max|x| / 127            code = rint(x * (1 / s))                         i8, -127 to 127

``int8-static`` has the numbers in planes, one a matrix: ``input_scale`` f32 [1] and, if it is ``asymmetric``,
``input_zero_point`` i8 [1]; they are [E, 1] for experts. Without a zero point z it is 0::

    code = clip(rint(x * (1 / s)) + z, -128, 127)                                x ~ (code - z) * s

``calibrated`` makes them from the range of the inputs, low <= 0 <= high::

    symmetric     s = max(-low, high) / 127
    asymmetric    s = (high - low) / 255,  z = clip(rint(-low / s), 0, 255) - 128

The product, with codes a of inputs, c of weights and the scales s and t of both, is
``f32(sum((a - z) * c)) * (s * t)``, in float32 from the exact sum on. All other arithmetic is float32, rounding after
each operation, ``rint`` to nearest with ties to even; a scale below 2^-126 becomes 0 and its codes are 0 (or z).

Decoding gives the weight alone. Its error is that of ``int8-absmax``. Bits per weight: 8 + 32 / K, and for
``int8-static`` 32 or 40 bits a matrix. The input's formulas are those of ``torch.fake_quantize_per_tensor_affine`` and
``per_channel``, bit for bit. See Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, and Xiao et al., SmoothQuant, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, bad_scales, check_weights
from .int8_affine import LARGEST_SCALE, LEAST_SCALE, Int8Absmax, divisor, usable

INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"
LEAST_INPUT, LARGEST_INPUT = -128, 127  # codes of inputs
_WEIGHTS = Int8Absmax()


@dataclass(frozen=True)
class Int8Dynamic(Scheme):
    """Store 8-bit rows for layers that quantize each row of their inputs; for tensors of rank 2 and more."""

    name: ClassVar[str] = "int8-dynamic"

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        return _WEIGHTS.planes(shape, dtype)

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return _WEIGHTS.encode(array, dtype)

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        return _WEIGHTS.decode_rows(planes, shape, dtype, rows)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return True

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        return _WEIGHTS.bad_values(planes)

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        return _WEIGHTS.other_forms(planes, shape)


@dataclass(frozen=True)
class Int8Static(Int8Dynamic):
    """Store 8-bit rows, and how the inputs of their layer are quantized.

    ``ranges`` are the lowest and highest input of each matrix, which only ``calibrated`` sets; it is no parameter.
    """

    name: ClassVar[str] = "int8-static"

    asymmetric: int = 0
    ranges: tuple[tuple[float, float], ...] = field(default_factory=tuple, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.asymmetric not in (0, 1):
            raise self.refuse(f"{self.name}: asymmetric {self.asymmetric}, 0 or 1")

    @property
    def needs_inputs(self) -> bool:
        return not self.ranges

    @property
    def uncalibrated(self) -> Int8Dynamic:
        return Int8Dynamic()

    def calibrated(self, low: np.ndarray, high: np.ndarray) -> Int8Static:
        """Return the scheme of a tensor whose inputs were seen to lie between ``low`` and ``high``, f32 [matrices]."""
        return replace(self, ranges=tuple(zip(low.tolist(), high.tolist(), strict=True)))

    def input_steps(self) -> np.ndarray:
        low, high = self._ranges()
        with np.errstate(over="ignore"):
            steps = (high - low) / np.float32(255) if self.asymmetric else np.maximum(-low, high) / np.float32(127)
        return usable(steps).astype(np.float32)

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest input of each matrix, zero included, f32."""
        ranges = np.array(self.ranges, np.float32).reshape(-1, 2)
        return np.minimum(ranges[:, 0], 0), np.maximum(ranges[:, 1], 0)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        scale = PlaneSpec(INPUT_SCALE, "f32", (*shape[:-2], 1))
        zero = (PlaneSpec(INPUT_ZERO_POINT, "i8", scale.shape),) if self.asymmetric else ()
        return *super().planes(shape, dtype), scale, *zero

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        planes = super().encode(array, dtype)
        if self.needs_inputs and math.prod(array.shape[:-2]):
            raise SchemeError(
                f"{self.name} needs the range of the layer's inputs: give statistics of activations (--calibrate), or "
                "take int8-dynamic, which needs none"
            )
        return planes | self._inputs((*array.shape[:-2], 1))

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return False

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        yield from bad_scales(planes, INPUT_SCALE)
        scale = planes[INPUT_SCALE]
        if ((scale > 0) & (scale < LEAST_SCALE)).any():
            yield INPUT_SCALE, "a scale is below 2^-126, where inputs count as zeros"
        if (scale > LARGEST_SCALE).any():
            yield INPUT_SCALE, "a scale is above 2^119"
        if self.asymmetric and planes[INPUT_ZERO_POINT][scale == 0].any():
            yield INPUT_ZERO_POINT, "a zero point is not zero where the scale is"

    def _inputs(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the planes about the inputs, in this shape: one range a matrix, or the same for all."""
        scale, count = self.input_steps(), math.prod(shape)
        if len(scale) not in (1, count) or not np.isfinite(self.ranges).all():
            what = f"{count} finite ranges of inputs are needed, one a matrix, found {self.ranges[:2]}"
            raise SchemeError(f"{self.name}: {what}")
        if not (scale <= LARGEST_SCALE).all():
            raise SchemeError(f"{self.name}: inputs are so large that they need a scale above 2^119")
        found: dict[str, np.ndarray] = {INPUT_SCALE: scale}
        if self.asymmetric:
            zero = np.clip(np.rint(-self._ranges()[0] / divisor(scale)), 0, 255) + np.float32(LEAST_INPUT)
            found[INPUT_ZERO_POINT] = np.where(scale == 0, 0, zero).astype(np.int8)
        return {role: np.resize(values, shape) for role, values in found.items()}
