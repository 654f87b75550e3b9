"""Implements ``fp8-block``: 8-bit floating-point codes (OCP E4M3) with a scale per block of rows and columns.

DeepSeek's and Qwen's checkpoints have blocks of 128 by 128; ``rows=1,columns=all`` is a scale a row (a channel), and
``rows=all,columns=all`` one for each matrix. The scale is f32, bf16, f16 or, as a power of two, f8_e8m0.
``value = code * scale``, which is ``Fp8Dequantize`` of ``transformers.integrations.finegrained_fp8``, and
``dequantize`` of compressed-tensors, in float32.

The encoder's ``scale = max|x| / 448`` and ``code = e4m3(x / scale)`` are those of DeepSeek's ``act_quant_kernel``
(DeepSeek-V3, inference/kernel.py) and of compressed-tensors' ``calculate_qparams``, with the scale that is stored. A
scale in f8_e8m0 is the next power of two, as in transformers' ``Fp8Quantize`` for ``scale_fmt: ue8m0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import DTYPES
from .block_scaled import ALL, BlockScaled, check_block, check_word, dtype_of, dtype_words, magnitude, stored_scale

_SCALES = dtype_words("f32", "bf16", "f16", "f8_e8m0")


@dataclass(frozen=True)
class Fp8Block(BlockScaled):
    """Store f8_e4m3 in the tensor's shape, and a scale for each block."""

    name: ClassVar[str] = "fp8-block"
    words = {"rows": {"all": ALL}, "columns": {"all": ALL}, "scale": _SCALES, **BlockScaled.words}

    rows: int = 128
    columns: int = 128
    scale: int = DTYPES["f32"].code

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self, rows=self.rows, columns=self.columns)
        check_word(self, scale=self.scale)

    @property
    def codes(self) -> str:
        return "f8_e4m3"

    @property
    def block(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def steps(self) -> dict[str, str]:
        return {"scale": dtype_of(_SCALES, self.scale)}

    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        scale = magnitude(low, high) / np.float32(448)
        dtype = self.steps["scale"]
        return {"scale": _next_power(scale) if dtype == "f8_e8m0" else stored_scale(scale, dtype)}


def _next_power(scale: np.ndarray) -> np.ndarray:
    """Return the least powers of two, f8_e8m0 codes, that float32 scales do not exceed, from 2^-126 up."""
    exponent = (scale.view(np.uint32) + np.uint32(0x7F_FFFF)) >> np.uint32(23)
    return exponent.clip(1, 254).astype(np.uint8)
