"""Encoding at speed: the schemes' own results, bit for bit, by the fastest way there is.

The compiled encoders (``native``) read a tensor once. Where they cannot be had, or have no way for a scheme, there is
torch; where torch is missing too, the scheme's own numpy code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np

from .. import native
from ..errors import SchemeError
from ..schemes import Scheme
from ..schemes.base import FLOATS, matrix
from ..schemes.fourbit import CODEBOOKS, FourBit
from ..schemes.int8 import NO_HALF, Int8
from ..schemes.nf4_cpu import NF4CPU
from ..schemes.plain import Plain

Encoder = Callable[[Scheme, np.ndarray, str], dict[str, np.ndarray]]


def encode(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Encode ``array``, whose elements are ``dtype``: the planes that ``scheme.encode`` gives.

    Raises:
        SchemeError: a value is not finite, or the scheme cannot hold the tensor.
    """
    if isinstance(scheme, NF4CPU):
        return scheme.tiled(encode(scheme.canonical, array, dtype), array.shape)
    fast = _encoders(native.available).get(type(scheme))
    return fast(scheme, array, dtype) if fast else scheme.encode(array, dtype)


@cache
def _encoders(compiled: bool) -> dict[type[Scheme], Encoder]:
    encoders: dict[type[Scheme], Encoder] = {}
    if importlib.util.find_spec("torch"):
        from .encoders_torch import ENCODERS

        encoders |= ENCODERS
    return encoders | _COMPILED if compiled else encoders


def _int8(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    rows = np.ascontiguousarray(array).reshape(matrix(array.shape))
    codes, absmax = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    if not native.int8_rows(rows, dtype, codes, absmax):
        raise SchemeError(NO_HALF)
    return {"codes": codes.reshape(array.shape), "row_absmax": absmax.reshape(array.shape[:-1])}


def _four_bit(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if not isinstance(scheme, FourBit):
        raise TypeError(f"{scheme.text} is not of four bits")
    flat, size, book = np.ascontiguousarray(array).reshape(-1), scheme.block_size, CODEBOOKS[scheme.name]
    codes, absmax = np.empty(-(-flat.size // 2), np.uint8), np.empty(scheme.blocks(array.shape), np.float32)
    blocks = flat.size // size
    whole = blocks * size
    values = flat[:whole].reshape(blocks, size)
    if not native.four_bit_blocks(values, dtype, book.bounds, book.order, codes[: whole // 2], absmax[:blocks]):
        raise SchemeError("a value is not finite")
    if whole < flat.size:  # the short block at the end has an arithmetic of its own
        codes[whole // 2 :], absmax[-1:] = scheme.encode_flat(flat[whole:], dtype)
    return {"codes": codes, **scheme.scales(absmax)}


def _plain(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if scheme.name != dtype or dtype not in FLOATS:  # rounding, which torch is good at, or whole numbers
        return _encoders(False).get(Plain, Scheme.encode)(scheme, array, dtype)
    if not native.finite(np.ascontiguousarray(array), dtype):
        raise SchemeError("a value is not finite")
    return {"values": array}


_COMPILED: dict[type[Scheme], Encoder] = {Int8: _int8, FourBit: _four_bit, Plain: _plain}
