"""Implements ``ternary``: codes 0, 1 and 2 for -1, 0 and 1, two bits each, and one scale for the tensor, as in BitNet.

``value = (code - 1) * scale``, or with ``reciprocal=1`` ``(code - 1) / scale``, in float32: ``BitLinear`` of
``transformers.integrations.bitnet`` divides by ``weight_scale``, and ``AutoBitLinear`` multiplies. The scale is f32,
bf16 or f16.

The encoder is that of Ma et al., The Era of 1-bit LLMs, 2024, and of ``WeightQuant`` of
``transformers.integrations.bitnet``: the scale is the mean of |x|, or its reciprocal, and codes are x / mean, rounded
to nearest and clipped, with the scale that is stored. The mean is of sums in float64, in order. A tensor of zeros has
scale 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import DTYPES, to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, check_weights, matrix
from .block_scaled import (
    LARGEST_VALUE,
    bad_floats,
    check_word,
    dtype_of,
    dtype_words,
    negative,
    pieces,
    stored_scale,
)
from .packing import pack, unpack

_SCALES = dtype_words("f32", "bf16", "f16")
_LEAST_MEAN = np.float32(2.0**-120)


@dataclass(frozen=True)
class Ternary(Scheme):
    """Store u2 in the tensor's shape, and a scale [1]."""

    name: ClassVar[str] = "ternary"
    words = {"scale": _SCALES}

    scale: int = DTYPES["f32"].code
    reciprocal: int = 0

    def __post_init__(self) -> None:
        check_word(self, scale=self.scale)
        if self.reciprocal not in (0, 1):
            raise self.refuse(f"{self.name}: reciprocal {self.reciprocal}, 0 or 1")

    @property
    def scales(self) -> str:
        """Return the dtype of the scale."""
        return dtype_of(_SCALES, self.scale)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        return PlaneSpec("codes", "u2", shape), PlaneSpec("scale", self.scales, (1,))

    def dequantized(self, values: Any, scale: Any) -> Any:
        """Return what codes stand for, given as float32 ``values``, which are overwritten: arrays or tensors."""
        values -= 1
        if self.reciprocal:
            values /= scale
        else:
            values *= scale
        return values

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        rows = array.reshape(matrix(array.shape))
        total, largest = 0.0, np.float32(0)
        for piece in pieces(rows):
            magnitude = np.abs(to_float32(rows[piece], dtype)).reshape(-1)
            largest = np.maximum(largest, magnitude.max())
            total += float(np.cumsum(magnitude, dtype=np.float64)[-1])
        if not largest <= LARGEST_VALUE:  # NaN fails this too
            raise SchemeError(f"a value is not finite, or beyond 2^120, where {self.name} could overflow")
        mean = np.array([total / max(rows.size, 1)], np.float32)
        if self.reciprocal and 0 < mean < _LEAST_MEAN:
            raise SchemeError(f"values so small that {self.name},reciprocal=1 needs a scale above 2^120")
        stored = stored_scale(np.float32(1) / mean if self.reciprocal and mean else mean, self.scales)
        scale = to_float32(stored, self.scales)
        codes = np.empty(DTYPES["u2"].stored(rows.shape), np.uint8)
        for piece in pieces(rows):
            values = to_float32(rows[piece], dtype)
            values = values * scale if self.reciprocal else values / scale
            codes[piece] = pack((np.clip(np.rint(values), -1, 1) + np.float32(1)).astype(np.uint8), 2, "little")
        spec = self.planes(array.shape, dtype)[0]
        return {"codes": codes.reshape(spec.stored), "scale": stored}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        count, columns = matrix(shape)
        packed = planes["codes"].reshape(DTYPES["u2"].stored((count, columns)))[rows]
        values = unpack(packed, 2, columns, "little").astype(np.float32)
        with np.errstate(over="ignore"):
            return self.dequantized(values, to_float32(planes["scale"], self.scales))

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from bad_floats("scale", planes["scale"], self.scales, "a scale")
        yield from negative("scale", planes["scale"], self.scales)
        if self.reciprocal and (to_float32(planes["scale"], self.scales) == 0).any():
            yield "scale", "a scale that codes are divided by is zero"

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        codes = planes["codes"]
        if (codes & (codes >> np.uint8(1)) & np.uint8(0x55)).any():
            yield "codes", "a code is 3"
