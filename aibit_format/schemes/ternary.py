"""Implements ``ternary``: codes 0, 1 and 2 for -1, 0 and 1, two bits each, and one scale for a matrix, as in BitNet.

``value = (code - 1) * scale``, or with ``reciprocal=1`` ``(code - 1) / scale``, in float32: ``BitLinear`` of
``transformers.integrations.bitnet`` divides by ``weight_scale``, and ``AutoBitLinear`` multiplies. The scale is f32,
bf16 or f16: [1], or [..., 1] in a tensor of more dimensions.

The encoder is that of Ma et al., The Era of 1-bit LLMs, 2024, and of ``WeightQuant`` of
``transformers.integrations.bitnet``: the scale is the mean of |x|, or its reciprocal, and codes are x / mean, rounded
to nearest and clipped, with the scale that is stored. The mean is of sums in float64, in order. A matrix of zeros has
scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import DTYPES, to_float32
from ..errors import SchemeError
from .base import Planes
from .block_scaled import ALL, BlockScaled, Spread, Steps, check_word, dtype_of, dtype_words, pieces, stored_scale

_SCALES = dtype_words("f32", "bf16", "f16")
_LEAST_MEAN = np.float32(2.0**-120)


@dataclass(frozen=True)
class Ternary(BlockScaled):
    """Store u2 in the tensor's shape, and a scale for each matrix."""

    name: ClassVar[str] = "ternary"
    of_encoder: ClassVar[tuple[str, ...]] = ()  # models are trained for this formula
    promised = True
    words = {"scale": _SCALES}

    scale: int = DTYPES["f32"].code
    reciprocal: int = 0

    def __post_init__(self) -> None:
        check_word(self, scale=self.scale)
        if self.reciprocal not in (0, 1):
            raise self.refuse(f"{self.name}: reciprocal {self.reciprocal}, 0 or 1")

    @property
    def codes(self) -> str:
        return "u2"

    @property
    def block(self) -> tuple[int, int]:
        return 1, ALL

    @property
    def steps(self) -> dict[str, str]:
        return {}

    @property
    def whole(self) -> dict[str, str]:
        return {"scale": dtype_of(_SCALES, self.scale)}

    def dequantized(self, values: Any, steps: Steps, spread: Spread) -> Any:
        values -= 1
        if self.reciprocal:
            values /= steps["scale"]
        else:
            values *= steps["scale"]
        return values

    def quantized(self, values: np.ndarray, steps: Steps, spread: Spread) -> np.ndarray:
        values = values * steps["scale"] if self.reciprocal else values / steps["scale"]
        return (np.clip(np.rint(values), -1, 1) + np.float32(1)).astype(np.uint8)

    def numbers(self, rows: np.ndarray, dtype: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        totals = np.zeros(len(rows))
        for piece in pieces(rows):
            values = np.abs(to_float32(rows[piece], dtype))
            self.check_range(values.max())
            totals[piece] = np.cumsum(values, axis=1, dtype=np.float64)[:, -1]
        each = np.pad(totals.reshape(math.prod(shape[:-2]), shape[-2]), ((0, 0), (1, 0)))
        mean = (np.add.accumulate(each, axis=1)[:, -1:] / max(rows.shape[1] * shape[-2], 1)).astype(np.float32)
        return self.fit(mean, mean)

    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        mean = high
        if self.reciprocal:
            if ((mean > 0) & (mean < _LEAST_MEAN)).any():
                raise SchemeError(f"values so small that {self.name},reciprocal=1 needs a scale above 2^120")
            mean = np.float32(1) / np.where(mean == 0, np.float32(1), mean)
        return {"scale": stored_scale(mean, self.whole["scale"])}

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        if self.reciprocal and (to_float32(planes["scale"], self.whole["scale"]) == 0).any():
            yield "scale", "a scale that codes are divided by is zero"

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        codes = planes["codes"]
        if (codes & (codes >> np.uint8(1)) & np.uint8(0x55)).any():
            yield "codes", "a code is 3"
