"""Implements ``nf4-cpu``: nf4 with a second copy of the codes in the order that AVX512-BF16 kernels read.

On processors with AVX512-BF16, bitsandbytes 0.50 repacks every nf4 weight in its first forward on a CPU, which costs
seconds and a copy of the model in memory. Here the repacked form lies in the file beside the canonical planes, so that
it is mapped instead. Pages of the form that is not used are never touched: the only cost is a larger file.

``tiles`` u8 [N, K / 2]: rows in groups of 32; in a group, for each pair of neighbouring columns, the 64 codes of 32
rows by 2 columns, row by row; each 64 become 32 bytes, of which byte i holds code i in its low nibble and code
i + 32 in its high one. ``tile_absmax`` bf16 [K / block_size, N]: the scales, rounded to nearest even, transposed.
The canonical planes are those of ``nf4``, and ``decode`` reads them. See ``_convert_weight_packed_for_cpu`` in
bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..dtypes import from_float32, to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme
from .fourbit import FourBit
from .packing import unpack_nibbles

ROWS, COLUMNS = 32, 64  # N and K must be multiples of these: the kernel requires it


@dataclass(frozen=True)
class NF4CPU(Scheme):
    """Store the planes of ``nf4``, and the same values again as ``tiles`` and ``tile_absmax``."""

    name: ClassVar[str] = "nf4-cpu"
    cpu_roles: ClassVar[frozenset[str]] = frozenset({"tiles", "tile_absmax"})
    block_size: int = 64
    nested: int = 0

    def __post_init__(self) -> None:
        self.canonical  # noqa: B018 - refuses parameters that nf4 does not take

    @cached_property
    def canonical(self) -> FourBit:
        """Return the scheme of the canonical planes."""
        return FourBit("nf4", self.block_size, self.nested)

    @property
    def fallback(self) -> FourBit:
        """Return the scheme for a tensor whose shape does not divide into tiles."""
        return self.canonical

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        canonical = self.canonical.planes(shape, dtype)
        if len(shape) != 2 or shape[0] % ROWS or shape[1] % COLUMNS or shape[1] % self.block_size:
            raise SchemeError(
                f"nf4-cpu needs a matrix of whole tiles: rows a multiple of {ROWS}, columns of {COLUMNS} and of the "
                f"block size {self.block_size}, found shape {list(shape)}"
            )
        rows, columns = shape
        return (
            *canonical,
            PlaneSpec("tiles", "u8", (rows, columns // 2)),
            PlaneSpec("tile_absmax", "bf16", (columns // self.block_size, rows)),
        )

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return self.tiled(self.canonical.encode(array, dtype), array.shape)

    def tiled(self, planes: Planes, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Make the planes of this scheme from the canonical ones."""
        rows, columns = shape
        codes = unpack_nibbles(planes["codes"], rows * columns)
        pairs = codes.reshape(rows // ROWS, ROWS, columns // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 2, ROWS)
        tiles = pairs[:, 1] << 4
        tiles |= pairs[:, 0]
        absmax = self.canonical.absmax(planes, slice(None)).reshape(rows, columns // self.block_size)
        transposed = from_float32(np.ascontiguousarray(absmax.T), "bf16")
        return {**planes, "tiles": tiles.reshape(rows, columns // 2), "tile_absmax": transposed}

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        return self.canonical.row_multiple(shape)

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        return self.canonical.decode_rows(planes, shape, dtype, rows)

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from self.canonical.bad_values(planes)
        if not np.isfinite(to_float32(planes["tile_absmax"], "bf16")).all():
            yield "tile_absmax", "a scale is not finite"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        return self.canonical.other_forms(planes, shape)

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        try:
            wanted = self.tiled({role: planes[role] for role in planes if not role.startswith("tile")}, shape)
        except SchemeError:
            yield "tile_absmax", "a scale of the canonical planes is beyond what bf16 holds"
            return
        for role in ("tiles", "tile_absmax"):
            if not np.array_equal(planes[role], wanted[role]):
                yield role, "differs from the canonical planes"
