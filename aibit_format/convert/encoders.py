"""Encodes tensors in the fastest way available, with the same result as the schemes' own code, bit for bit.

The compiled encoders (``native``) read a tensor once. If they are not built, torch encodes; without torch, the scheme's
own numpy code does. The functions here are the capabilities ``encode_fast`` and
``encode_weighted_fast``.
"""

from __future__ import annotations

import numpy as np

from .. import native
from ..errors import SchemeError
from ..interop import has_torch
from ..schemes import Scheme, capabilities
from ..schemes.base import FLOATS, matrix
from ..schemes.cluster_group import ClusterGroup
from ..schemes.fourbit import CODEBOOKS, FourBit
from ..schemes.ggml import GGML
from ..schemes.ggml_blocks import Found, Search
from ..schemes.ggml_quantizer import GGMLQuantizer
from ..schemes.ggml_quantizer import ggml_quantizer as quantizer_of
from ..schemes.int8 import NO_HALF, Int8
from ..schemes.nf4_cpu import NF4CPU
from ..schemes.plain import Plain
from ..schemes.scale_search import Grid, Groups, Pair, Steps
from ..schemes.searched import Searched
from . import encoders_torch

Planes = dict[str, np.ndarray]


def encode(scheme: Scheme, array: np.ndarray, dtype: str, importance: np.ndarray | None = None) -> Planes:
    """Encode ``array``, whose elements are ``dtype``, to the same planes as ``scheme.encode``.

    With an importance, they are those of ``scheme.encode_weighted`` if the scheme has a choice; and without one, if the
    scheme is known to gain from a search of its own.

    Raises:
        SchemeError: a value is not finite, or the scheme cannot hold the tensor.
    """
    if scheme.gains_alone if importance is None else scheme.takes_importance:
        weighted = capabilities.find(scheme, "encode_weighted_fast") or type(scheme).encode_weighted
        return weighted(scheme, array, dtype, importance)
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
    if scheme.of_formula.takes_importance:
        return searched_weighted(scheme, array, dtype, None)
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


def ggml(scheme: GGML, array: np.ndarray, dtype: str) -> Planes:
    """Encode GGML's blocks, with scales that are searched for where rounding does not fix them."""
    if scheme.layout.encode is not None:
        return scheme.encode(array, dtype)
    return ggml_weighted(scheme, array, dtype, None)


def ggml_weighted(scheme: GGML, array: np.ndarray, dtype: str, importance: np.ndarray | None) -> Planes:
    """Encode GGML's blocks with scales that are searched for."""
    if not native.available or dtype not in FLOATS:
        return scheme.encode_weighted(array, dtype, importance)
    return scheme.encode_weighted(array, dtype, importance, _found)


def ggml_quantizer(scheme: GGML, columns: int) -> GGMLQuantizer | None:
    """Return the quantizer of GGML's blocks, which searches with compiled code if there is some."""
    return quantizer_of(scheme, columns, _found) if native.available else quantizer_of(scheme, columns)


def _found(search: Search, values: np.ndarray, dtype: str, weights: np.ndarray) -> Found:
    """Do what ``ggml_encode.find`` does with compiled code."""
    found = Found.empty(search, values.size // search.block)
    numbers = (
        search.groups, search.size, *search.codes, *search.factors, search.minima, search.steps, search.repeats,
        search.rounds, search.by_value,
    )  # fmt: skip
    starts, divisors = (np.array(pairs, np.float32) for pairs in (search.starts, search.divisors))
    if not native.ggml_blocks(
        values, dtype, weights, numbers, starts, divisors, search.bounds_and_book, found.codes, found.factors,
        found.scales,
    ):  # fmt: skip
        raise SchemeError("a value is not finite")
    return found


def searched(scheme: Searched | ClusterGroup, array: np.ndarray, dtype: str) -> Planes:
    """Encode groups of codes; only a search has compiled code."""
    return searched_weighted(scheme.of_formula if isinstance(scheme, Searched) else scheme, array, dtype, None)


def searched_weighted(
    scheme: Searched | ClusterGroup, array: np.ndarray, dtype: str, importance: np.ndarray | None
) -> Planes:
    """Encode groups of codes with scales that are searched for, if they are."""
    if not native.available or dtype not in FLOATS:
        return scheme.encode_weighted(array, dtype, importance)
    return scheme.encode_weighted(array, dtype, importance, Steps(_fitted, _chosen))


def _grid(grid: Grid) -> tuple[float, ...]:
    return grid.kind, grid.low, grid.high, grid.least, grid.magic


def _fitted(grid: Grid, groups: Groups, repeats: int) -> Pair:
    """Do what ``scale_search.fit`` does with compiled code."""
    scales, zeros = np.empty((2, len(groups.values)), np.float32)
    native.fit_groups(
        groups.values, groups.dtype, groups.weights, _grid(grid), grid.bounds_and_book,
        np.array(grid.starts, np.float32), repeats, grid.has_zero, scales, zeros,
    )  # fmt: skip
    return scales, zeros


def _chosen(grid: Grid, groups: Groups, scales: np.ndarray, zeros: np.ndarray) -> Pair:
    """Do what ``scale_search.choose`` does with compiled code."""
    index, fitted = np.empty(len(groups.values), np.uint8), np.empty(len(groups.values), np.float32)
    native.choose_groups(
        groups.values, groups.dtype, groups.weights, _grid(grid), grid.bounds_and_book, scales, zeros, index, fitted
    )
    return index, fitted


def plain(scheme: Plain, array: np.ndarray, dtype: str) -> Planes:
    """Check that values are finite, and round them if the scheme's dtype is another one."""
    if native.available and scheme.name == dtype and dtype in FLOATS:
        if not native.finite(np.ascontiguousarray(array), dtype):
            raise SchemeError("a value is not finite")
        return {"values": array}
    # torch rounds fastest; integers stay as they are.
    return encoders_torch.plain(scheme, array, dtype) if has_torch() else scheme.encode(array, dtype)
