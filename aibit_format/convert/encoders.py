"""Encodes tensors in the fastest way available, with the same result as the schemes' own code, bit for bit.

The compiled encoders (``native``) read a tensor once. If they are not built, torch encodes; without torch, the scheme's
own numpy code does. The functions here are the capability ``encode_fast``.
"""

from __future__ import annotations

import numpy as np

from .. import native
from ..errors import SchemeError
from ..interop import has_torch
from ..schemes import Scheme, capabilities
from ..schemes.base import FLOATS, matrix
from ..schemes.fourbit import CODEBOOKS, FourBit
from ..schemes.int8 import NO_HALF, Int8
from ..schemes.nf4_cpu import NF4CPU
from ..schemes.plain import Plain
from . import encoders_torch

Planes = dict[str, np.ndarray]


def encode(scheme: Scheme, array: np.ndarray, dtype: str) -> Planes:
    """Encode ``array``, whose elements are ``dtype``, to the same planes as ``scheme.encode``.

    Raises:
        SchemeError: a value is not finite, or the scheme cannot hold the tensor.
    """
    fast = capabilities.find(scheme, "encode_fast")
    return fast(scheme, array, dtype) if fast else scheme.encode(array, dtype)


def int8(scheme: Int8, array: np.ndarray, dtype: str) -> Planes:
    """Encode rows as LLM.int8 does."""
    if not native.available:
        return encoders_torch.int8(array, dtype) if has_torch() else scheme.encode(array, dtype)
    rows = np.ascontiguousarray(array).reshape(matrix(array.shape))
    codes, absmax = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    if not native.int8_rows(rows, dtype, codes, absmax):
        raise SchemeError(NO_HALF)
    return {"codes": codes.reshape(array.shape), "row_absmax": absmax.reshape(array.shape[:-1])}


def four_bit(scheme: FourBit, array: np.ndarray, dtype: str) -> Planes:
    """Encode flat blocks as nf4 or fp4."""
    if not native.available:
        return encoders_torch.four_bit(scheme, array, dtype) if has_torch() else scheme.encode(array, dtype)
    flat, size, book = np.ascontiguousarray(array).reshape(-1), scheme.block_size, CODEBOOKS[scheme.name]
    codes, absmax = np.empty(-(-flat.size // 2), np.uint8), np.empty(scheme.blocks(array.shape), np.float32)
    blocks = flat.size // size
    whole = blocks * size
    values = flat[:whole].reshape(blocks, size)
    if not native.four_bit_blocks(values, dtype, book.bounds, book.order, codes[: whole // 2], absmax[:blocks]):
        raise SchemeError("a value is not finite")
    if whole < flat.size:  # a short block at the end is scaled differently
        codes[whole // 2 :], absmax[-1:] = scheme.encode_flat(flat[whole:], dtype)
    return {"codes": codes, **scheme.scales(absmax)}


def nf4_cpu(scheme: NF4CPU, array: np.ndarray, dtype: str) -> Planes:
    """Encode as nf4, and add a copy of the codes laid out in tiles."""
    return scheme.tiled(four_bit(scheme.canonical, array, dtype), array.shape)


def plain(scheme: Plain, array: np.ndarray, dtype: str) -> Planes:
    """Check that values are finite, and round them if the scheme's dtype is another one."""
    if native.available and scheme.name == dtype and dtype in FLOATS:
        if not native.finite(np.ascontiguousarray(array), dtype):
            raise SchemeError("a value is not finite")
        return {"values": array}
    # torch rounds fastest; integers stay as they are.
    return encoders_torch.plain(scheme, array, dtype) if has_torch() else scheme.encode(array, dtype)
