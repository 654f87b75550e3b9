"""Implements ``fp8-e4m3``: 8-bit floating-point codes (OCP E4M3) with a float32 scale per row or per tensor.

The planes are ``codes`` f8_e4m3 in the tensor's shape and ``scale`` f32: the shape with 1 in place of the last
dimension, or [1] for ``group=tensor``. In float32, rounding after each operation::

    scale = max|x| / 448        code = e4m3(x / scale), to nearest, ties to even        x ~ value(code) * scale

That is torch's ``(x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)``, bit for bit: 448 is E4M3's largest value, the
quotient exceeds it by one rounding of float32 at most, and E4M3 rounds values up to 464 down to it, so there is nothing
to clip. If the scale is below 2^-126, or the group all zeros, the scale is stored as 0, and the codes are zeros with
the signs of the source.
See Micikevicius et al., FP8 Formats for Deep Learning, 2022.

Error: at most ``max(|x| / 16, scale / 1024) * (1 + 2^-20)``, whatever the source's dtype; below 2^-117 in a group
stored as zeros. Bits per weight: 8 + 32 / K, with K the length of a row; 8 for ``group=tensor``.
A value that is not finite, or needs a scale above 2^119, raises a SchemeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import nearest_codes, to_float32
from .base import Planes
from .int8_affine import Grouped, divisor, usable

LARGEST = np.float32(448)
_PIECE_ELEMENTS = 1 << 20  # codes checked at a time


@dataclass(frozen=True)
class Fp8E4M3(Grouped):
    """Store codes with a sign, four bits of exponent and three of mantissa, times a scale."""

    name: ClassVar[str] = "fp8-e4m3"
    codes_dtype = "f8_e4m3"

    def steps(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        return (usable(np.maximum(-low, high) / LARGEST),)

    def quantized(self, values: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        values /= divisor(steps[0])
        return nearest_codes(values, self.codes_dtype)

    def dequantized(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        values = to_float32(codes, self.codes_dtype)
        values *= steps[0]
        return values

    def are_zero(self, codes: np.ndarray, *steps: np.ndarray) -> np.ndarray:
        return (codes & 0x7F) == 0  # of either sign

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        codes = planes["codes"].reshape(-1)
        if any(((codes[i : i + _PIECE_ELEMENTS] & 0x7F) == 0x7F).any() for i in range(0, codes.size, _PIECE_ELEMENTS)):
            yield "codes", "a code is NaN"
