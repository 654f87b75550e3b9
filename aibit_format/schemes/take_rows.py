"""Takes rows of a stored matrix, each at most once, without decoding it: the planes of a smaller matrix.

The rows decode to the same values, bit for bit. The smaller matrix may have a simpler scheme than the whole one. The
functions here are the capability ``take_rows``. They raise SchemeError where scales are shared by several rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from ..errors import SchemeError
from .base import Planes, Scheme
from .fourbit import CODEBOOKS, FourBit
from .int8_outlier import Int8Outlier
from .nf4_cpu import NF4CPU

Taken = tuple[Scheme, dict[str, np.ndarray]]


def by_rows(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: np.ndarray) -> Taken:
    """Take rows of the planes that have one for each row of the tensor; the others apply to all, and stay whole."""
    alone = {spec.role: spec.stored for spec in scheme.planes((1, *shape[1:]), dtype)}
    found = {}
    for spec in scheme.planes(shape, dtype):
        plane = planes[spec.role]
        if spec.stored == alone[spec.role]:  # however many rows there are
            found[spec.role] = plane
        elif spec.shape[0] == shape[0]:
            found[spec.role] = plane[rows]
        else:
            raise SchemeError(
                f"{scheme.text} has numbers that several rows share ({spec.role} {list(spec.shape)} of "
                f"{list(shape)}), so rows cannot be taken one by one without decoding"
            )
    return scheme, found


def four_bit(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: np.ndarray) -> Taken:
    """Take rows made of whole blocks. Nested scales become plain ones, equal in value: their groups end in rows.

    A nested scale may be below zero, where rounding made it so, and a plain one may not. Under it, codes of zero keep
    their value with the scale 0, and others cannot be taken.
    """
    found = cast(FourBit, scheme)
    if len(shape) != 2 or shape[1] % found.block_size:
        raise SchemeError(f"{scheme.text} has blocks that reach over the ends of rows in a tensor of {list(shape)}")
    codes, absmax = found.whole_rows(planes, shape, rows)
    codes, absmax = codes.reshape(-1), absmax.reshape(-1)
    below = np.flatnonzero(np.signbit(absmax))
    if len(below):
        pairs = CODEBOOKS[found.name].both[codes.reshape(len(absmax), -1)[below]]
        if pairs.view(np.float32).any():
            raise SchemeError(f"{scheme.text} has nested scales below zero, which are not stored in any other way")
        absmax = np.where(np.signbit(absmax), np.float32(0), absmax)
    return replace(found, nested=0), {"codes": codes, "absmax": absmax}


def nf4_cpu(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: np.ndarray) -> Taken:
    """Take rows of the canonical planes."""
    return four_bit(cast(NF4CPU, scheme).canonical, planes, shape, dtype, rows)


def int8_outlier(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: np.ndarray) -> Taken:
    """Take int8 rows, and of the rows in float16 those that are among them."""
    if len(shape) != 2:
        raise SchemeError(f"{scheme.text}: rows of a tensor of {list(shape)} are not taken")
    index = planes["outlier_index"]
    place = np.full(shape[0], -1)
    place[index] = np.arange(len(index))
    values = place[rows]
    at = np.flatnonzero(values >= 0)
    found = {
        "codes": planes["codes"][rows], "row_absmax": planes["row_absmax"][rows],
        "outlier_index": at.astype(np.uint32), "outlier_values": planes["outlier_values"][values[at]],
    }  # fmt: skip
    return replace(cast(Int8Outlier, scheme), outliers=len(at)), found
