"""Unpacks HQQ's codes: blocks of rows share bytes, or words of 32 bits, the first block in the highest bits."""

from __future__ import annotations

import numpy as np

# Name of a packing -> dtype of its elements, codes in one, and bits of each.
PACKINGS = {
    "8bit_u8": ("u8", 1, 8), "4bit_u8": ("u8", 2, 4), "3bit_32": ("i32", 10, 3), "2bit_u8": ("u8", 4, 2),
    "1bit_u8": ("u8", 8, 1),
}  # fmt: skip


def unpack(packed: np.ndarray, packing: str, rows: int) -> np.ndarray:
    """Unpack [R, C] to codes u8 [rows, C]; see ``BitPack`` in ``hqq.core.bitpack``."""
    _, count, bits = PACKINGS[packing]
    if count == 1:
        return packed[:rows]
    words = packed.view(f"u{packed.dtype.itemsize}")
    mask = words.dtype.type((1 << bits) - 1)
    shifts = (words.dtype.type(bits * place) for place in range(count - 1, -1, -1))
    return np.concatenate([((words >> shift) & mask).astype(np.uint8) for shift in shifts])[:rows]
