"""Implements ``int8``: rows of 8-bit codes in LLM.int8's weight format, as in bitsandbytes.

Each row has one scale, its largest magnitude. For a weight ``[N, K]`` the planes are the codes
``i8 [N, K]`` and ``row_absmax`` ``f32 [N]``; leading dimensions (fused experts ``[E, N, K]``) are kept, so that
every expert has its own row scales. ``x ~ code * row_absmax / 127``; the error is at most ``row_absmax / 254``
plus one rounding of the source to float16.

The arithmetic is that of ``bitsandbytes.functional.int8_vectorwise_quant`` on CPU (0.50), bit for bit:
the source is cast to float16, and ``code = rint(x * ((1 / absmax) * 127))`` in float32. ``127 / absmax``
would differ in some codes. See Dettmers et al., LLM.int8(), 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, bad_scales, check_weights, matrix

NO_HALF = "a value is not finite, or beyond float16's 65504, which int8 goes through"

LEAST_CODE = -127  # that an encoder writes
_LARGEST = 65504
_ROWS = 256  # rows encoded at a time: their float32 copies stay in cache


@dataclass(frozen=True)
class Int8(Scheme):
    """Store signed 8-bit codes with one float32 scale per row; for tensors of rank 2 and more."""

    name: ClassVar[str] = "int8"

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        return PlaneSpec("codes", "i8", shape), PlaneSpec("row_absmax", "f32", shape[:-1])

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        rows = array.reshape(matrix(array.shape))
        codes = np.empty(rows.shape, np.int8)
        absmax = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows) if rows.size else 0, _ROWS):
            piece = slice(start, start + _ROWS)
            with np.errstate(over="ignore"):
                half = to_float32(rows[piece], dtype).astype(np.float16).astype(np.float32)
            largest = np.abs(half).max(axis=1)
            if not np.isfinite(largest).all():
                raise SchemeError(NO_HALF)
            # All codes of a row of zeros are 0, which is what dividing by 1 instead of 0 gives.
            scale = (np.float32(1) / np.where(largest == 0, np.float32(1), largest)) * np.float32(127)
            codes[piece] = np.rint(half * scale[:, None])
            absmax[piece] = largest
        return {"codes": codes.reshape(array.shape), "row_absmax": absmax.reshape(array.shape[:-1])}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        scaled = planes["codes"].reshape(matrix(shape))[rows].astype(np.float32)
        scaled *= planes["row_absmax"].reshape(-1)[rows, None]
        scaled *= np.float32(1 / 127)
        return scaled

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return True

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from bad_scales(planes, "row_absmax")
        if planes["row_absmax"].max(initial=0) > _LARGEST:
            yield "row_absmax", "a scale is beyond float16's 65504, which every source went through"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        codes, absmax = planes["codes"].reshape(matrix(shape)), planes["row_absmax"].reshape(-1)
        used = np.logical_or.reduce(codes, axis=1)
        if codes.min(initial=0) < LEAST_CODE:
            yield "codes", "a code is -128"
        if absmax[~used].any():
            yield "row_absmax", "a row without a code but 0 has a scale"
        if used[absmax == 0].any():
            yield "codes", "a code under a scale of 0 is not 0"
