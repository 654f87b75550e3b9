"""Implements the plain schemes, one per dtype: the values themselves, in row-major order.

Values of less than a byte are packed: each row is whole bytes, its first value in the lowest bits of the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import DTYPES, from_float32, to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, matrix
from .packing import pack_plane, unpack


@dataclass(frozen=True)
class Plain(Scheme):
    """Store one plane, ``values``: the tensor in its logical dtype, which is also the scheme's name."""

    name: str  # type: ignore[misc]  # one class serves every dtype, so here the name belongs to the instance
    lossy: ClassVar[bool] = False

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        if dtype != self.name:
            raise SchemeError(f"scheme {self.name!r} stores {self.name}, not {dtype}")
        return (PlaneSpec("values", dtype, shape),)

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        bits = DTYPES[dtype].bits
        if bits < 8 and array.max(initial=0) >> bits:
            raise SchemeError(f"code {array.max()} has more than the {bits} bits of {dtype}")
        if dtype == self.name:
            values = array
        elif DTYPES[dtype].is_float and DTYPES[self.name].is_float:
            values = from_float32(to_float32(array, dtype), self.name)
        else:
            raise SchemeError(f"{dtype} values cannot be stored as {self.name}")
        finite = np.isfinite(array if dtype == "f64" else to_float32(array, dtype)) if DTYPES[dtype].is_float else True
        if not np.all(finite):
            raise SchemeError("a value is not finite")
        return {"values": pack_plane(values, self.name) if DTYPES[self.name].is_packed else values}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        values = planes["values"]
        values = values.reshape(matrix(values.shape))[rows]
        if DTYPES[self.name].is_packed:
            values = unpack(values, DTYPES[self.name].bits, matrix(shape)[1], "little")
        return to_float32(values, self.name)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return True

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        # A vector is one row, which can be cut where a byte begins.
        return 8 // math.gcd(8, DTYPES[self.name].bits) if len(shape) == 1 else 1

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        if self.name == "bool" and planes["values"].view(np.uint8).max(initial=0) > 1:
            yield "values", "a bool is neither 0 nor 1"
