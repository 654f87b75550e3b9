"""Implements ``cluster-group``: packed codes into a codebook of a tensor's own, and a float16 scale per group of a row.

The planes are ``codes`` and ``codebook`` as in ``cluster``, and ``scale`` f16, the tensor's shape with the number of
groups in place of the last dimension. A row of K elements is cut into groups of ``group``, the last of which may be
short; ``group=row`` makes the row one group. ``x ~ codebook[code] * scale`` in float32. Without scales, ``cluster`` has
one codebook for small and for large rows, which clips the few large weights that a model hangs on.

The encoder alternates. Scales begin as the largest magnitudes of groups. Values are divided by them and rounded to
float16, and k-means (``cluster``) finds a codebook for their histogram, in which an element counts as its scale squared
times its importance, if there is one. For that codebook, scales are searched for (``scale_search``) if a code has at
most 4 bits; and again, three times. Codes are the nearest entries, under the scales that are stored.

Bits per weight: ``bits`` + 16 / G + 2^bits * 32 / elements, plus up to 7 bits per row, with G elements per group. A
group of zeros has scale 0. A value that is not finite, or beyond float16's 65504, raises a SchemeError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import ROW, Planes, PlaneSpec, Rows, bad_scales, check_importance, matrix
from .block_scaled import LARGEST_BLOCK
from .cluster import Cluster, codebook_of, half_bits
from .packing import pack
from .scale_grids import book
from .scale_search import NUMPY, Grid, Groups, Pair, Steps
from .searched import Numbers, fits, groups_of, improved, near_fit

_ROUNDS = 3  # of finding a codebook for scales, and scales for a codebook
_SEARCHED_BITS = 4
_PIECE_ELEMENTS = 1 << 18  # elements processed at a time
_LEAST = np.float32(2.0**-24)  # the smallest float16 above zero


@dataclass(frozen=True)
class ClusterGroup(Cluster):
    """Store codes into a codebook, and scales of groups; for tensors of rank 1 and more."""

    name: ClassVar[str] = "cluster-group"
    words = {"group": {"row": ROW}}

    group: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not ROW <= self.group <= LARGEST_BLOCK:
            raise self.refuse(f"{self.name}: group {self.group}, at most {LARGEST_BLOCK}")

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row, a short one at the end included."""
        return -(-columns // (self.group or max(columns, 1)))

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        codes, codebook = super().planes(shape, dtype)
        return codes, PlaneSpec("scale", "f16", (*shape[:-1], self.groups(shape[-1]))), codebook

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return self.encode_weighted(array, dtype, None)

    @property
    def takes_importance(self) -> bool:
        return True

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps = NUMPY
    ) -> dict[str, np.ndarray]:
        if importance is not None:
            check_importance(importance, array.shape)
        rows = array.reshape(matrix(array.shape))
        count, columns = rows.shape
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        pieces = [slice(start, start + step) for start in range(0, count if columns else 0, step)]
        scale = np.zeros((count, self.groups(columns)), np.float16)
        for piece in pieces:
            scale[piece] = self._largest(to_float32(rows[piece], dtype))
        codebook, code_of = self._codebook(rows, dtype, scale, importance, pieces)
        for _ in range(_ROUNDS if self.bits <= _SEARCHED_BITS and fits(self.group or columns) else 0):
            one = _OneBook(codebook)
            for piece in pieces:
                groups = groups_of(rows[piece], dtype, self.group or columns, _of_rows(importance, piece))
                better = improved(one, groups, {"scale": scale[piece].reshape(-1)}, steps)
                scale[piece] = better["scale"].reshape(scale[piece].shape)
            codebook, code_of = self._codebook(rows, dtype, scale, importance, pieces)
        codes = np.empty((count, self.width(columns)), np.uint8)
        for piece in pieces:
            codes[piece] = pack(code_of[half_bits(self._divided(rows[piece], dtype, scale[piece]), "f32")], self.bits)
        flat = {"codes": codes, "scale": scale, "codebook": codebook}
        return {spec.role: flat[spec.role].reshape(spec.shape) for spec in self.planes(array.shape, dtype)}

    def _largest(self, values: np.ndarray) -> np.ndarray:
        """Return the largest magnitudes of groups, f16 [rows, groups], none of them rounded to zero."""
        starts = np.arange(self.groups(values.shape[1])) * self.group
        largest = np.maximum.reduceat(np.abs(values), starts, axis=1)
        with np.errstate(over="ignore"):
            rounded = np.where(largest > 0, np.maximum(largest, _LEAST), largest).astype(np.float16)
        if not np.isfinite(rounded).all():
            raise SchemeError(f"a value is not finite, or beyond float16's 65504, which scales of {self.name} are")
        return rounded

    def _spread(self, scale: np.ndarray, columns: int) -> np.ndarray:
        """Expand scales to one for each column, f32 [rows, columns], or to a single one if that is for all."""
        wide = scale.astype(np.float32)
        return wide if wide.shape[1] <= 1 else np.repeat(wide, self.group, axis=1)[:, :columns]

    def _divided(self, rows: np.ndarray, dtype: str, scale: np.ndarray) -> np.ndarray:
        """Divide values by their scales, f32, clipped to what float16 holds; under a scale of 0 they are 0."""
        wide = self._spread(scale, rows.shape[1])
        values = to_float32(rows, dtype) / np.where(wide == 0, np.float32(np.inf), wide)
        return np.clip(values, -65504, 65504, out=values)

    def _codebook(
        self,
        rows: np.ndarray,
        dtype: str,
        scale: np.ndarray,
        importance: np.ndarray | None,
        pieces: Sequence[slice],
    ) -> Pair:
        """Find the codebook for these scales, and the code of every float16."""
        histogram = np.zeros(1 << 16)
        for piece in pieces:
            bits = half_bits(self._divided(rows[piece], dtype, scale[piece]), "f32")
            weights = np.square(self._spread(scale[piece], rows.shape[1])).astype(np.float64)
            each = _of_rows(importance, piece)
            weights = weights if each is None else weights * each
            weights = np.broadcast_to(weights, bits.shape)
            histogram += np.bincount(bits.reshape(-1), weights.reshape(-1), minlength=1 << 16)
        return codebook_of(histogram, 1 << self.bits)

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        values = super().decode_rows(planes, shape, dtype, rows)
        count, columns = matrix(shape)
        values *= self._spread(planes["scale"].reshape(count, self.groups(columns))[rows], columns)
        return values

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        yield from bad_scales(planes, "scale")

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        return iter(())


class _OneBook:
    """Says to the search of scales which codebook there is."""

    def __init__(self, codebook: np.ndarray) -> None:
        values = np.concatenate([codebook, np.full(16 - len(codebook), codebook[-1])])
        self.grid_of_codes: Grid = book(tuple(values.tolist()))

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        held = scale.clip(_LEAST, np.float32(65504)).astype(np.float16)
        return [{"scale": np.where(plain["scale"] == 0, np.float16(0), held)}]

    def real(self, numbers: Numbers) -> Pair:
        scale = numbers["scale"].astype(np.float32)
        return scale, np.zeros(scale.shape, np.float32)

    def first_tries(self, groups: Groups, plain: Numbers, steps: Steps) -> Sequence[Numbers]:
        return near_fit(self, groups, plain, steps)


def _of_rows(importance: np.ndarray | None, rows: slice) -> np.ndarray | None:
    """Return the importance of some rows: of columns, or of elements."""
    return importance[rows] if importance is not None and importance.ndim == 2 else importance
