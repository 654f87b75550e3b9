"""Multiplies weights of nf4 and fp4 on a CPU: compiled code decodes, and torch or compiled code multiplies."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ... import native
from ...interop import to_numpy
from ...schemes.fourbit import CODEBOOKS, FourBit, dynamic_map
from .matmul import FEW_ROWS
from .openmp import threads
from .operators import NAMES

# Elements that a thread decodes at a time. Smaller pieces would stay in its core's own cache, but a product with few
# rows of a wide weight is slow: of [2048, 5632], 46 rows at a time take half as long again as 186.
_PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Weight:
    """Holds a weight's codes u8 [out, in / 2] and scales f32 [out, blocks of a row], in rows of whole blocks."""

    codes: np.ndarray
    scales: np.ndarray
    book: np.ndarray  # f32 [16]
    block_size: int

    @classmethod
    def stored(cls, scheme: FourBit, planes: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Weight | None:
        """Return a weight [out, in] of a file; None where compiled code does not decode it."""
        rows, columns = shape
        if not native.available or columns % scheme.block_size or columns % 2:
            return None
        found = {role: planes[role].numpy() for role in ("codes", "absmax")}
        scales = found["absmax"]
        if scheme.nested:
            outer, offset = planes["nested_absmax"].numpy(), float(planes["nested_offset"][0])
            scales = nested_scales(scales, dynamic_map(), outer, offset)
        packed = found["codes"].reshape(rows, columns // 2)
        return cls(packed, scales.reshape(rows, -1), CODEBOOKS[scheme.name].values, scheme.block_size)

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Decode all of it to [out, in] in ``dtype``, in memory that this thread's next weight overwrites."""
        rows, half = self.codes.shape
        values = _scratch(rows * 2 * half * dtype.itemsize).view(dtype).view(rows, 2 * half)
        self._decode(slice(None), dtype, values)
        return values

    def times(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply x [rows, in] in float32, and round to its dtype: [rows, out]."""
        wide, rows = x.float().contiguous(), len(x)
        product = torch.empty(rows, len(self.codes))
        if rows <= FEW_ROWS:  # weights are decoded in registers, once for every four rows of x
            native.four_bit_product(
                wide.numpy(), self.codes, self.book, self.scales, self.block_size, product.numpy(), *threads()
            )
        else:
            self._multiply_pieces(wide, product)
        return (product if bias is None else product.add_(bias)).to(x.dtype)

    def _multiply_pieces(self, wide: torch.Tensor, product: torch.Tensor) -> None:
        out_features, in_features = product.shape[1], wide.shape[1]
        step = max(1, min(_PIECE_ELEMENTS * torch.get_num_threads() // in_features, out_features))
        piece = torch.empty(step, in_features)
        for start in range(0, out_features, step):
            part = slice(start, min(start + step, out_features))
            values = piece[: part.stop - start]
            self._decode(part, torch.float32, values)
            torch.mm(wide, values.T, out=product[:, part])

    def _decode(self, rows: slice, dtype: torch.dtype, out: torch.Tensor) -> None:
        """Decode rows into ``out``, rounded to its ``dtype``."""
        native.four_bit_values(
            self.codes[rows], NAMES[dtype], self.book, self.scales[rows], self.block_size, to_numpy(out)[0],
            *threads(),
        )  # fmt: skip


_kept = threading.local()


def _scratch(size: int) -> torch.Tensor:
    """Return u8 [size], memory that each thread keeps for its largest weight.

    Mapping new memory in takes longer than decoding a weight.
    """
    kept = getattr(_kept, "memory", None)
    if kept is None or len(kept) < size:
        kept = _kept.memory = torch.empty(size, dtype=torch.uint8)
    return kept[:size]


def nested_scales(codes: np.ndarray, book: np.ndarray, outer: np.ndarray, offset: float) -> np.ndarray:
    """Decode nested scales to f32.

    That is done at each call, which takes a twentieth of a token's product: kept, they would take four times the memory
    that nesting was to save.
    """
    scales = np.empty(codes.size, np.float32)
    native.nested_scales(codes, book, outer, offset, scales)
    return scales
