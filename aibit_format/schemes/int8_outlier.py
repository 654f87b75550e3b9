"""Implements ``int8-outlier``: rows in int8, except those that eight bits would serve badly, in float16.

A row whose largest magnitude is more than ``threshold`` times its root mean square spends nearly all codes on a few
large values. Such rows stay in float16. For a weight ``[N, K]`` with M of them the planes are those of ``int8``,
``codes`` i8 [N, K] and ``row_absmax`` f32 [N], both zero in those rows; ``outlier_index`` u32 [M], the rows in
increasing order; and ``outlier_values`` f16 [M, K]. The first two keep leading dimensions, and rows are numbered
across them. M follows from the values: it is ``outliers``, a parameter of the tensor, which ``fitted`` sets. In version
1, which is read for ever, it is a parameter of the scheme, so that each M takes an entry of the scheme table.

All values are rounded to float16 first, as in ``int8``, whose arithmetic applies to the other rows. A row is an outlier
if ``largest^2 * K > threshold^2 * sum(x^2)``, in float64; the squares, exact there, are added in the order of the row,
so that the choice is the same on every machine. A row exactly on the threshold stays int8, and so does one of zeros.

Error, relative to the source rounded to float16: that of ``int8`` in int8 rows, none in the others. Bits per weight:
8 + 32 / K + (M / N) * (16 + 32 / K). A value that is not finite, or beyond float16's 65504, raises a SchemeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, check_weights, matrix
from .int8 import Int8

_PIECE_ELEMENTS = 1 << 17  # elements checked at a time: their float64 squares stay in cache
_MOST_ROWS = 1 << 32  # as many as 32-bit indices can number
_INT8 = Int8()


@dataclass(frozen=True)
class Int8Outlier(Scheme):
    """Store rows in int8, except ``outliers`` rows in float16; for tensors of rank 2 and more."""

    name: ClassVar[str] = "int8-outlier"
    version: ClassVar[int] = 2
    of_tensor: ClassVar[tuple[str, ...]] = ("outliers",)

    threshold: int = 8
    outliers: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= 65535:
            raise self.refuse(f"{self.name}: threshold {self.threshold}, 1 to 65535")

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        rows, columns = matrix(shape)
        if self.outliers > rows or rows > _MOST_ROWS:
            raise SchemeError(f"{self.name}: {self.outliers} outliers of {rows} rows; at most all, of 2^32")
        index = PlaneSpec("outlier_index", "u32", (self.outliers,))
        return *_INT8.planes(shape, dtype), index, PlaneSpec("outlier_values", "f16", (self.outliers, columns))

    def fitted(self, array: np.ndarray, dtype: str) -> Int8Outlier:
        return replace(self, outliers=len(self._outlier_rows(array.reshape(matrix(array.shape)), dtype)))

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        planes = _INT8.encode(array, dtype)
        rows = array.reshape(matrix(array.shape))
        index = self._outlier_rows(rows, dtype)
        if len(index) != self.outliers:
            raise SchemeError(
                f"{self.name}: {len(index)} rows are outliers, the parameter says {self.outliers}; fitted() sets it"
            )
        planes["codes"].reshape(rows.shape)[index] = 0
        planes["row_absmax"].reshape(-1)[index] = 0
        values = to_float32(rows[index], dtype).astype(np.float16)
        return planes | {"outlier_index": index.astype(np.uint32), "outlier_values": values}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        values = _INT8.decode_rows(planes, shape, dtype, rows)
        index = planes["outlier_index"]
        wanted = np.arange(matrix(shape)[0])[rows]
        place = np.searchsorted(index, wanted)
        found = np.flatnonzero(place < len(index))
        found = found[index[place[found]] == wanted[found]]
        values[found] = planes["outlier_values"][place[found]]
        return values

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from _INT8.bad_values(planes)
        if not np.isfinite(planes["outlier_values"]).all():
            yield "outlier_values", "a value is not finite"
        index, absmax = planes["outlier_index"], planes["row_absmax"].reshape(-1)
        if index.size and index.max() >= absmax.size:
            yield "outlier_index", f"row {index.max()} of {absmax.size}"
            return
        if (index[1:] <= index[:-1]).any():
            yield "outlier_index", "rows are not in increasing order"
        if absmax[index].any():
            yield "row_absmax", "the scale of a float16 row is not zero"
        if planes["codes"].reshape(absmax.size, planes["codes"].shape[-1])[index].any():
            yield "codes", "a code of a float16 row is not zero"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        return _INT8.other_forms(planes, shape)

    def _outlier_rows(self, rows: np.ndarray, dtype: str) -> np.ndarray:
        """Return the increasing indices of the rows of a matrix that stay in float16."""
        columns = rows.shape[1]
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        found = np.zeros(len(rows), np.bool_)
        for start in range(0, len(rows) if rows.size else 0, step):
            piece = slice(start, start + step)
            # A row with a value that is not finite, here or in float16, is no outlier; Int8.encode refuses it.
            with np.errstate(over="ignore", invalid="ignore"):
                squares = np.square(to_float32(rows[piece], dtype).astype(np.float16).astype(np.float64))
                largest = squares.max(axis=1)
                total = np.cumsum(squares, axis=1, out=squares)[:, -1]  # one after the other, unlike sum()
                found[piece] = largest * columns > float(self.threshold**2) * total
        return np.flatnonzero(found)


@dataclass(frozen=True)
class Int8Outlier1(Int8Outlier):
    """Store the same planes, in version 1: their number of float16 rows is a parameter of the scheme."""

    version: ClassVar[int] = 1
    is_numbered: ClassVar[bool] = True
    of_tensor: ClassVar[tuple[str, ...]] = ()
