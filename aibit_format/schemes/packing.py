"""Packs codes of less than a byte into rows of whole bytes, with zeros after the last code.

Codes follow one another from the highest bits down (``bitorder="big"``), as schemes pack them into planes of u8, or
from the lowest bits up (``"little"``), as elements of a dtype of less than a byte lie in a plane.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..dtypes import DTYPES

BitOrder = Literal["big", "little"]


def pack(codes: np.ndarray, bits: int, bitorder: BitOrder = "big") -> np.ndarray:
    """Pack codes u8 [..., n], each below ``2 ** bits``, to u8 [..., ceil(n * bits / 8)]; rows start on a byte."""
    if bits == 8:
        return codes
    if 8 % bits:
        shifts = places(bits, 1, bitorder)
        planes = (codes[..., None] >> np.array(shifts, np.uint8)) & 1
        return np.packbits(planes.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder=bitorder)
    each = 8 // bits
    if more := -codes.shape[-1] % each:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], more), np.uint8)], axis=-1)
    first, *others = places(8, bits, bitorder)
    packed = codes[..., ::each] << np.uint8(first)
    for i, shift in enumerate(others, 1):
        packed |= codes[..., i::each] << np.uint8(shift)
    return packed


def unpack(packed: np.ndarray, bits: int, count: int, bitorder: BitOrder = "big") -> np.ndarray:
    """Unpack the ``count`` codes, u8 [..., count], that ``pack`` put into each row."""
    if bits == 8:
        return packed
    if 8 % bits:
        planes = np.unpackbits(packed, axis=-1, count=count * bits, bitorder=bitorder)
        shifts = np.array(places(bits, 1, bitorder), np.uint8)
        return (planes.reshape(*packed.shape[:-1], count, bits) << shifts).sum(axis=-1, dtype=np.uint8)
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * each), np.uint8)
    for i, shift in enumerate(places(8, bits, bitorder)):
        codes[..., i::each] = (packed >> np.uint8(shift)) & mask
    return codes[..., :count]


def places(width: int, step: int, bitorder: BitOrder) -> list[int]:
    """Return the places in ``width`` bits of the parts of ``step`` bits that it is cut into, in their order."""
    upwards = list(range(0, width, step))
    return upwards if bitorder == "little" else upwards[::-1]


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Pack 4-bit codes u8 [..., n] to u8 [..., ceil(n / 2)]: the first of two is the high nibble."""
    return pack(codes, 4)


def unpack_nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    """Unpack the ``count`` 4-bit codes, u8 [..., count], of each row."""
    return unpack(packed, 4, count)


def bad_tail(packed: np.ndarray, bits: int, count: int, bitorder: BitOrder = "big") -> bool:
    """Tell whether any bit after the last code of a row is not zero."""
    spare = packed.shape[-1] * 8 - count * bits
    mask = (1 << spare) - 1 if bitorder == "big" else 256 - (1 << (8 - spare))
    return bool(spare and (packed[..., -1] & np.uint8(mask)).any())


def pack_plane(codes: np.ndarray, dtype: str) -> np.ndarray:
    """Pack the elements of a plane of a dtype of less than a byte, codes u8 in its logical shape, as it is stored."""
    return pack(np.atleast_1d(codes), DTYPES[dtype].bits, "little")


def unpack_plane(stored: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Unpack a plane of a dtype of less than a byte, u8 as it is stored, to codes u8 in its logical ``shape``."""
    return unpack(stored, DTYPES[dtype].bits, (shape or (1,))[-1], "little").reshape(shape)
