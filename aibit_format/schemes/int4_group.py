"""Implements ``int4-group``: 4-bit codes with a scale and a zero point per group of a row, as in GPTQ and AWQ.

A row of K elements is cut into groups of ``group``, the last of which may be short; ``group=row`` makes the row one
group. ``x = (code - zero) * scale`` with codes 0 to 15. With ``symmetric=1`` there is no plane of zero points: the
zero is 8. With ``ordered=1`` (GPTQ's act-order, ``desc_act``) ``group_index`` says which group each column is in.
The product is exact in float32; GPTQ's and AWQ's own kernels compute it in float16, which rounds it.

The encoder rounds to nearest. It sees only weights; GPTQ and AWQ themselves need a model and data, and their
checkpoints are imported unchanged by ``formats.huggingface``. The scale of a group is its range, which includes zero,
divided by 15; with ``symmetric=1`` the range is twice the largest magnitude: Frantar et al., GPTQ, 2022, and the
``Quantizer`` of its code. Unlike there, a symmetric group without negative values has the same scale, and the codes
are computed with the scale that is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import ROW, Planes, PlaneSpec, Rows, check_importance, check_weights, matrix
from .packing import bad_tail, pack_nibbles, unpack_nibbles
from .scale_grids import integers, integers_from_zero
from .scale_search import NUMPY, Grid, Pair, Steps
from .searched import Numbers, Searched, fits, groups_of

GROUP_SIZES = (ROW, 16, 32, 64, 128, 256, 512, 1024)
SYMMETRIC_ZERO = 8
LARGEST_ZERO = 16  # GPTQ's first format stores zero - 1 in four bits
_LEVELS = np.float32(15)
_LEAST = np.float32(2.0**-24)  # the smallest float16 above zero
_PIECE_ELEMENTS = 1 << 18  # elements encoded at a time: their float32 copies stay in cache


@dataclass(frozen=True)
class Int4Group(Searched):
    """Store unsigned 4-bit codes, two to a byte, with float16 scales."""

    name: ClassVar[str] = "int4-group"
    words = {"group": {"row": ROW}, **Searched.words}

    group: int = 128
    symmetric: int = 0
    ordered: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES[1:]))
            raise self.refuse(f"{self.name}: group {self.group}, one of row, {sizes}")
        for key, value in (("symmetric", self.symmetric), ("ordered", self.ordered)):
            if value not in (0, 1):
                raise self.refuse(f"{self.name}: {key} {value}, 0 or 1")
        if self.ordered and self.group == ROW:
            raise self.refuse(f"{self.name}: columns of one group have no order: group row, ordered 1")

    def groups(self, columns: int) -> int:
        """Return the number of groups in a row, a short one at the end included."""
        return -(-columns // (self.group or max(columns, 1)))

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype)
        *rows, columns = shape
        scales = (*rows, self.groups(columns))
        specs = [PlaneSpec("codes", "u8", (*rows, -(-columns // 2))), PlaneSpec("scale", "f16", scales)]
        if not self.symmetric:
            specs.append(PlaneSpec("zero_point", "u8", scales))
        if self.ordered:
            specs.append(PlaneSpec("group_index", "i32", (columns,)))
        return tuple(specs)

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps = NUMPY
    ) -> dict[str, np.ndarray]:
        if self.ordered:
            raise SchemeError(f"{self.name}: the order of columns comes with a checkpoint; encode with ordered=0")
        if importance is not None:
            check_importance(importance, array.shape)
        rows = array.reshape(matrix(array.shape))
        count, columns = rows.shape
        size = self.group or columns
        codes = np.empty((count, -(-columns // 2)), np.uint8)
        numbers = {
            "scale": np.empty((count, self.groups(columns)), np.float16),
            "zero_point": np.empty((count, self.groups(columns)), np.uint8),
        }
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        for start in range(0, count, step):
            piece = slice(start, start + step)
            blocks = self._blocks(to_float32(rows[piece], dtype))
            found: Numbers = self._plain(blocks)
            if self.is_searched(importance) and array.size and fits(size):
                weights = importance[piece] if importance is not None and importance.ndim == 2 else importance
                flat = {role: plane.reshape(-1) for role, plane in found.items()}
                found = self.improved(groups_of(rows[piece], dtype, size, weights), flat, steps)
            for role, plane in numbers.items():
                plane[piece] = found[role].reshape(plane[piece].shape)
            unpacked = self._quantized(blocks, numbers["scale"][piece], numbers["zero_point"][piece])
            codes[piece] = pack_nibbles(unpacked.reshape(len(blocks), -1)[:, :columns])
        flat = {"codes": codes, **numbers}
        return {spec.role: flat[spec.role].reshape(spec.shape) for spec in self.planes(array.shape, dtype)}

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Cut float32 rows [rows, K] into groups [rows, G, size]."""
        if not np.isfinite(values).all():
            raise SchemeError("a value is not finite")
        rows, columns = values.shape
        groups, size = self.groups(columns), self.group or columns
        if columns < groups * size:  # pad with zeros, which every group's range includes anyway
            values = np.concatenate([values, np.zeros((rows, groups * size - columns), np.float32)], axis=1)
        return values.reshape(rows, groups, size)

    def _plain(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        """Return the scales f16 and zeros u8, both [rows, G], of the ranges of groups."""
        low, high = blocks.min(axis=2, initial=0), blocks.max(axis=2, initial=0)
        if self.symmetric:
            high = np.maximum(high, -low)
            low = -high
        with np.errstate(over="ignore"):
            scale = ((high - low) / _LEVELS).astype(np.float16)
        if not np.isfinite(scale).all():
            raise SchemeError(f"values from {low.min():g} to {high.max():g}: a group's scale is beyond float16's 65504")
        scale[(scale == 0) & (high > low)] = _LEAST
        zero = np.full(scale.shape, SYMMETRIC_ZERO) if self.symmetric else np.rint(-low / _divisor(scale))
        return {"scale": scale, "zero_point": np.clip(zero, 0, _LEVELS).astype(np.uint8)}

    def _quantized(self, blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Round groups, f32 [rows, G, size], to codes u8."""
        codes = blocks / _divisor(scale)[..., None]
        np.rint(codes, out=codes)
        codes += zero[..., None].astype(np.float32)
        return np.clip(codes, 0, _LEVELS, out=codes).astype(np.uint8)

    @property
    def grid_of_codes(self) -> Grid:
        return integers(4) if self.symmetric else integers_from_zero(4)

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        found = np.copysign(np.abs(scale).clip(_LEAST, np.float32(65504)), scale).astype(np.float16)
        if self.symmetric:
            return [{**plain, "scale": found}]
        zeros = (each.clip(0, _LEVELS).astype(np.uint8) for each in (np.floor(zero), np.ceil(zero)))
        return [{"scale": found, "zero_point": each} for each in zeros]

    def real(self, numbers: Numbers) -> Pair:
        zero = numbers["zero_point"].astype(np.float32)
        return numbers["scale"].astype(np.float32), zero - np.float32(SYMMETRIC_ZERO) if self.symmetric else zero

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        count, columns = matrix(shape)

        def spread(role: str) -> np.ndarray:
            """Expand a plane with one number per group to one per column, f32 [rows, K]."""
            groups = planes[role].reshape(count, self.groups(columns))[rows].astype(np.float32)
            if self.ordered:
                return groups[:, planes["group_index"]]
            return np.repeat(groups, self.group or columns, axis=1)[:, :columns]

        packed = planes["codes"].reshape(count, -(-columns // 2))[rows]
        values = unpack_nibbles(packed, columns).astype(np.float32)
        values -= np.float32(SYMMETRIC_ZERO) if self.symmetric else spread("zero_point")
        values *= spread("scale")
        return values

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return not self.ordered

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        if not np.isfinite(planes["scale"]).all():
            yield "scale", "a scale is not finite"  # a negative one is fine: AutoRound writes them
        if not self.symmetric and (largest := planes["zero_point"].max(initial=0)) > LARGEST_ZERO:
            yield "zero_point", f"a zero point is {largest}, more than {LARGEST_ZERO}"
        if self.ordered and (index := planes["group_index"]).size:
            groups = planes["scale"].shape[-1]
            if index.min() < 0 or index.max() >= groups:
                yield "group_index", f"groups {index.min()} to {index.max()} of {groups}"

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        if bad_tail(planes["codes"], 4, shape[-1]):
            yield "codes", "the last nibble of a row of odd length is not zero"


def _divisor(scale: np.ndarray) -> np.ndarray:
    """Return scales, f32. A group of zeros has scale 0; dividing by 1 instead gives every element the code of zero."""
    return np.where(scale == 0, np.float32(1), scale.astype(np.float32))
