"""Changes the values of one tensor: multiplies or rotates its rows or columns, a few rows or one matrix at a time.

A tensor is seen as matrices [rows, columns], one for each expert of a stack; a vector is one column. Values are float64
while they are changed, and are rounded once, to the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..dtypes import from_float32, storage_of, to_float32
from .hadamard import Rotation

_PIECE = 1 << 18  # elements that are changed at a time, so that they stay in the cache


class Change(Protocol):
    """Change matrices. One whose ``axis`` is -1 changes each row by itself."""

    @property
    def axis(self) -> int:
        """Return the axis that it works along: -1 for columns, -2 for rows."""
        ...

    def apply(self, matrix: np.ndarray, which: int) -> np.ndarray:
        """Return the changed matrix number ``which``, f64 [rows, columns], or some of its rows; it may be the same."""
        ...


@dataclass(frozen=True)
class Scale:
    """Multiply rows or columns, from ``start`` on, with factors: f64 [n], or [matrices, n], some for each matrix."""

    axis: int
    factors: np.ndarray
    start: int = 0

    def apply(self, matrix: np.ndarray, which: int) -> np.ndarray:
        factors = self.factors if self.factors.ndim == 1 else self.factors[which]
        part = slice(self.start, self.start + len(factors))
        if self.axis == -1:
            matrix[:, part] *= factors
        else:
            matrix[part] *= factors[:, None]
        return matrix


@dataclass(frozen=True)
class Rotate:
    """Rotate rows or columns, ``count`` of them from ``start`` on, each stretch of the rotation's size by itself."""

    axis: int
    rotation: Rotation
    count: int
    start: int = 0

    def apply(self, matrix: np.ndarray, which: int) -> np.ndarray:
        turned = matrix if self.axis == -1 else matrix.T
        part = slice(self.start, self.start + self.count)
        turned[:, part] = self.rotation.apply(turned[:, part])
        return matrix


@dataclass(frozen=True)
class Replace:
    """Put other values in place of a vector's, f64 [n]."""

    values: np.ndarray
    axis: int = -2

    def apply(self, matrix: np.ndarray, which: int) -> np.ndarray:
        return self.values[:, None]


def changed(array: np.ndarray, dtype: str, changes: Sequence[Change], to: str) -> np.ndarray:
    """Return the changed values of a tensor in the storage of the dtype ``to``.

    Args:
        array: in the storage of ``dtype``.
        dtype: of its elements.
        changes: one after another.
        to: a floating-point dtype.
    """
    shape = array.shape
    matrices = array.reshape(-1, *shape[-2:]) if array.ndim > 1 else array.reshape(1, -1, 1)
    made = np.empty(matrices.shape, storage_of(to))
    by_rows = all(change.axis == -1 for change in changes)
    step = max(_PIECE // max(matrices.shape[-1], 1), 1) if by_rows else max(matrices.shape[1], 1)
    for which, matrix in enumerate(matrices):
        for first in range(0, len(matrix), step):
            piece = slice(first, first + step)
            values = to_float64(matrix[piece], dtype)
            for change in changes:
                values = change.apply(values, which)
            made[which, piece] = from_float64(values, to)
    return made.reshape(shape)


def to_float64(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in the storage of a dtype as float64, in an array of their own."""
    return array.astype(np.float64) if dtype == "f64" else to_float32(array, dtype).astype(np.float64)


def from_float64(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 values to a dtype, by way of float32, in its storage."""
    return values if dtype == "f64" else from_float32(values.astype(np.float32), dtype)
