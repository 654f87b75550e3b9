"""Packs codes of less than a byte into bytes: the first code in the highest bits, and zeros after the last."""

from __future__ import annotations

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes u8 [..., n], each below ``2 ** bits``, to u8 [..., ceil(n * bits / 8)]; rows start on a byte."""
    if bits == 8:
        return codes
    if bits == 4:
        return pack_nibbles(codes)
    planes = (codes[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(*codes.shape[:-1], -1), axis=-1)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack the ``count`` codes, u8 [..., count], that ``pack`` put into each row."""
    if bits == 8:
        return packed
    if bits == 4:
        return unpack_nibbles(packed, count)
    planes = np.unpackbits(packed, axis=-1, count=count * bits).reshape(*packed.shape[:-1], count, bits)
    return (planes << np.arange(bits - 1, -1, -1, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Pack 4-bit codes u8 [..., n] to u8 [..., ceil(n / 2)]: the first of two is the high nibble."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return (codes[..., ::2] << 4) | codes[..., 1::2]


def unpack_nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    """Unpack the ``count`` 4-bit codes, u8 [..., count], of each row."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., ::2] = packed >> 4
    codes[..., 1::2] = packed & 15
    return codes[..., :count]


def bad_tail(packed: np.ndarray, bits: int, count: int) -> bool:
    """Tell whether any bit after the last code of a row is not zero."""
    spare = packed.shape[-1] * 8 - count * bits
    return bool(spare and (packed[..., -1] & ((1 << spare) - 1)).any())
