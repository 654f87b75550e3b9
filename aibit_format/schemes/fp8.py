"""Implements ``fp8-e4m3``: 8-bit floating-point codes (OCP E4M3) with a float32 scale per row or per tensor.

The planes are ``codes`` f8_e4m3 in the tensor's shape and ``scale`` f32: the shape with 1 in place of the last
dimension, or [1] for ``group=tensor``. In float32, rounding after each operation::

    scale = max|x| / 448        code = e4m3(x / scale), to nearest, ties to even        x ~ value(code) * scale

That is torch's ``(x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)``, bit for bit: 448 is E4M3's largest value, the
quotient exceeds it by one rounding of float32 at most, and is clipped to it. If the scale is below 2^-126, or the group
all zeros, the scale is stored as 0, and the codes are zeros with the signs of the source. See Micikevicius et al., FP8
Formats for Deep Learning, 2022.

Error: at most ``max(|x| / 16, scale / 1024) * (1 + 2^-20)``, whatever the source's dtype; below 2^-117 in a group
stored as zeros. Bits per weight: 8 + 32 / K, with K the length of a row; 8 for ``group=tensor``.
A value that is not finite, or needs a scale above 2^119, raises a SchemeError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import nearest_codes, to_float32
from .base import ROW, Planes, check_importance, matrix
from .int8_affine import LARGEST_SCALE, LEAST_SCALE, Grouped, divisor, pieces, usable
from .scale_grids import floats
from .scale_search import NUMPY, Grid, Pair, Steps
from .searched import Numbers, Searched, fits, groups_of

LARGEST = np.float32(448)
_PIECE_ELEMENTS = 1 << 20  # codes checked at a time


@dataclass(frozen=True)
class Fp8E4M3(Grouped, Searched):
    """Store codes with a sign, four bits of exponent and three of mantissa, times a scale."""

    name: ClassVar[str] = "fp8-e4m3"
    words = {**Grouped.words, **Searched.words}
    codes_dtype = "f8_e4m3"

    def __post_init__(self) -> None:
        Grouped.__post_init__(self)
        Searched.__post_init__(self)

    def steps(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        return (usable(np.maximum(-low, high) / LARGEST),)

    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        values /= divisor(steps[0])
        return nearest_codes(np.clip(values, -LARGEST, LARGEST, out=values), self.codes_dtype)

    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        values = to_float32(codes, self.codes_dtype)
        values *= steps[0]
        return values

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return Searched.encode(self, array, dtype)

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps = NUMPY
    ) -> dict[str, np.ndarray]:
        (scale,) = self._steps(array, dtype)
        rows = array.reshape(matrix(array.shape))
        if importance is not None:
            check_importance(importance, array.shape)
        if self.is_searched(importance) and self.group == ROW and array.size and fits(rows.shape[1]):
            for piece in pieces(rows):
                weights = importance[piece] if importance is not None and importance.ndim == 2 else importance
                groups = groups_of(rows[piece], dtype, rows.shape[1], weights)
                scale[piece] = self.improved(groups, {"scale": scale[piece, 0]}, steps)["scale"][:, None]
        return self._encoded(array, dtype, (scale,))

    @property
    def grid_of_codes(self) -> Grid:
        return floats(self.codes_dtype)

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        return [{"scale": np.where(plain["scale"] == 0, np.float32(0), scale.clip(LEAST_SCALE, LARGEST_SCALE))}]

    def real(self, numbers: Numbers) -> Pair:
        return numbers["scale"], np.zeros(len(numbers["scale"]), np.float32)

    def are_zero(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        return (codes & 0x7F) == 0  # of either sign

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        codes = planes["codes"].reshape(-1)
        if any(((codes[i : i + _PIECE_ELEMENTS] & 0x7F) == 0x7F).any() for i in range(0, codes.size, _PIECE_ELEMENTS)):
            yield "codes", "a code is NaN"
