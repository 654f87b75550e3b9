"""Takes integer codes out of the schemes that hold groups of them, in the orders in which checkpoints store them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...schemes import Scheme
from ...schemes.block_scaled import dtype_of
from ...schemes.int4_group import Int4Group
from ...schemes.int_group import ZEROS, IntGroup
from ...schemes.packing import pack, unpack, unpack_nibbles

Planes = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Integers:
    """Describe codes of ``bits`` with a scale for ``group`` columns (0: all), whichever scheme holds them.

    ``zero`` says what stands for zero: ``none``, ``code``, ``float`` or ``bias``, as in ``int-group``.
    """

    bits: int
    group: int
    scale: str
    zero: str
    ordered: bool


def integers_of(scheme: Scheme) -> Integers | None:
    """Return what a scheme holds; ``None`` if it holds no groups of integers."""
    if isinstance(scheme, Int4Group):
        return Integers(4, scheme.group, "f16", "none" if scheme.symmetric else "code", bool(scheme.ordered))
    if isinstance(scheme, IntGroup):
        zero = next(word for word, number in ZEROS.items() if number == scheme.zero)
        return Integers(scheme.bits, scheme.group, dtype_of(scheme.words["scale"], scheme.scale), zero,
                        bool(scheme.ordered))  # fmt: skip
    return None


def codes(scheme: Scheme, planes: Planes, columns: int) -> np.ndarray:
    """Return codes, one in each u8 [..., columns]."""
    if isinstance(scheme, Int4Group):
        return unpack_nibbles(planes["codes"], columns)
    found = integers_of(scheme)
    return unpack(planes["codes"], found.bits if found else 8, columns, "little")


def stream(scheme: Scheme, planes: Planes) -> np.ndarray:
    """Return rows of codes as streams of bits from the lowest, u8 [..., bytes]; zeros follow the last code."""
    packed = planes["codes"]
    if isinstance(scheme, Int4Group):  # of two codes, the first is in the high bits
        return (packed << np.uint8(4)) | (packed >> np.uint8(4))
    return packed


def words(data: np.ndarray) -> np.ndarray:
    """Return rows of bytes as words, i32 [..., ceil(bytes / 4)], zeros after the last byte."""
    if more := -data.shape[-1] % 4:
        data = np.concatenate([data, np.zeros((*data.shape[:-1], more), np.uint8)], axis=-1)
    return np.ascontiguousarray(data).view("<i4")


def packed_words(values: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of numbers u8 [..., n], each below ``2 ** bits``, as streams in words, i32."""
    return words(pack(values, bits, "little"))


def word_count(columns: int, bits: int) -> int:
    """Return the number of words of a row."""
    return -(-columns * bits // 32)
