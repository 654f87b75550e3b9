"""Implements ``mxfp4``, ``mxfp8`` and ``nvfp4``: small floats in short blocks of a row, with scales of 8 bits.

- ``mxfp4``: codes f4_e2m1, and a power of two, f8_e8m0, per 32 elements: ``value = code * 2^(s - 127)``. OCP
  Microscaling Formats 1.0; ``convert_moe_packed_tensors`` of ``transformers.integrations.mxfp4`` (gpt-oss).
- ``mxfp8``: the same with codes f8_e4m3 or f8_e5m2.
- ``nvfp4``: codes f4_e2m1, a scale f8_e4m3 per 16 elements, and one global_scale f32 for each matrix:
  ``value = code * (scale * global_scale)`` (modelopt), or with ``reciprocal=1`` ``code * (scale / global_scale)``
  (``dequantize`` of compressed-tensors). Two roundings: that of the scales' product or quotient, and the last one.

The encoders: mxfp4 and mxfp8 are ``generate_mx_scales`` of compressed-tensors: the exponent of max|x| less that of the
largest code, one more if max|x| is at least 1.75 times its power of two, so that little is clipped. nvfp4 is
``calculate_qparams`` there and ``NVFP4QTensor`` of modelopt: global_scale = max|x| / (6 * 448), or its reciprocal, and
scale = e4m3(max|x| of the block / 6 / global_scale). Codes are rounded to nearest, with the scales that are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import DTYPES, nearest_codes, to_float32
from .base import Planes
from .block_scaled import BlockScaled, Steps, check_word, dtype_of, dtype_words, magnitude
from .scale_search import Groups
from .scale_search import Steps as SearchSteps
from .searched import Numbers

_ELEMENTS = dtype_words("f8_e4m3", "f8_e5m2")
_LARGEST_EXPONENT = {"f4_e2m1": 2, "f8_e4m3": 8, "f8_e5m2": 15}
_QUARTER = np.uint32(1 << 21)  # of the fraction of a float32
_LARGEST_FP4, _LARGEST_FP8 = np.float32(6), np.float32(448)
_LEAST_FP8 = np.float32(2.0**-9)
_LEAST_VALUE = np.float32(2.0**-100)  # a tensor of smaller ones is stored as zeros: its scales would lose bits


@dataclass(frozen=True)
class _Microscaled(BlockScaled):
    """A base class for powers of two as scales of 32 elements."""

    @property
    def block(self) -> tuple[int, int]:
        return 1, 32

    @property
    def steps(self) -> dict[str, str]:
        return {"scale": "f8_e8m0"}

    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        largest = magnitude(low, high).view(np.uint32)
        exponent = ((largest + _QUARTER) >> np.uint32(23)).astype(np.int32) - _LARGEST_EXPONENT[self.codes]
        return {"scale": exponent.clip(0, 254).astype(np.uint8)}

    def first_tries(self, groups: Groups, plain: Numbers, steps: SearchSteps) -> Sequence[Numbers]:
        exponent = plain["scale"].astype(np.int32)
        return [{"scale": (exponent + step).clip(0, 254).astype(np.uint8)} for step in (-1, 1, -2)]


@dataclass(frozen=True)
class MXFP4(_Microscaled):
    """Store f4_e2m1, two to a byte, the first in the low bits."""

    name: ClassVar[str] = "mxfp4"

    @property
    def codes(self) -> str:
        return "f4_e2m1"


@dataclass(frozen=True)
class MXFP8(_Microscaled):
    """Store floats of 8 bits."""

    name: ClassVar[str] = "mxfp8"
    words = {"element": _ELEMENTS, **BlockScaled.words}

    element: int = DTYPES["f8_e4m3"].code

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(self, element=self.element)

    @property
    def codes(self) -> str:
        return dtype_of(_ELEMENTS, self.element)


@dataclass(frozen=True)
class NVFP4(BlockScaled):
    """Store f4_e2m1 with scales of two levels."""

    name: ClassVar[str] = "nvfp4"
    gains_alone: ClassVar[bool] = True  # see ``searched``

    reciprocal: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reciprocal not in (0, 1):
            raise self.refuse(f"{self.name}: reciprocal {self.reciprocal}, 0 or 1")

    @property
    def codes(self) -> str:
        return "f4_e2m1"

    @property
    def block(self) -> tuple[int, int]:
        return 1, 16

    @property
    def steps(self) -> dict[str, str]:
        return {"scale": "f8_e4m3"}

    @property
    def whole(self) -> dict[str, str]:
        return {"global_scale": "f32"}

    def multiplier(self, steps: Steps) -> Any:
        scale, overall = steps["scale"], steps["global_scale"]
        return scale / overall if self.reciprocal else scale * overall

    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        largest = magnitude(low, high)
        most, both = largest.max(axis=(1, 2), initial=0), _LARGEST_FP4 * _LARGEST_FP8
        usable = np.where(most < _LEAST_VALUE, both, most)  # its global scale is 1
        overall = both / usable if self.reciprocal else usable / both
        scale, each = largest / _LARGEST_FP4, overall[:, None, None]
        scale = scale * each if self.reciprocal else scale / each
        codes = nearest_codes(np.clip(scale, _LEAST_FP8, _LARGEST_FP8), "f8_e4m3")
        return {"scale": codes, "global_scale": overall}

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        overall = plain["global_scale"]
        ratio = scale * overall if self.reciprocal else scale / overall
        nearest = nearest_codes(np.clip(np.abs(ratio), _LEAST_FP8, _LARGEST_FP8), "f8_e4m3").astype(np.int32)
        return [{**plain, "scale": (nearest + step).clip(1, 0x7E).astype(np.uint8)} for step in (0, -1, 1)]

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        overall = planes["global_scale"]
        if self.reciprocal and (overall == 0).any():
            yield "global_scale", "a global scale that scales are divided by is zero"
            return
        steps = {"scale": to_float32(planes["scale"], "f8_e4m3"), "global_scale": overall[..., None]}
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(self.multiplier(steps)).all():
                yield "global_scale", "with the scale of a block it is not finite"
