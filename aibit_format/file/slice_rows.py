"""Reads some rows of a stored matrix as a smaller matrix, or some matrices of a stack, without reading the others.

The planes of the rows are views of the mapped file, except scales that have to be computed. The result may have a
simpler scheme than the whole matrix. The functions here are the capability ``slice_rows``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np

from ..container.tables import Plane, TensorInfo
from ..dtypes import DTYPES
from ..errors import SchemeError
from ..schemes import Scheme, capabilities
from ..schemes.fourbit import NESTED_BLOCK, FourBit
from ..schemes.int8_outlier import Int8Outlier
from ..schemes.nf4_cpu import NF4CPU, ROWS
from ..schemes.plain import Plain
from .reader import File

Arrays = dict[str, np.ndarray]


def obstacle(info: TensorInfo, count: int) -> str:
    """Return why the tensor cannot be cut into ``count`` equal parts along its first dimension; empty if it can."""
    scheme, shape = info.scheme, info.shape
    if not capabilities.has(scheme, "slice_rows") or (len(shape) not in (2, 3) and not isinstance(scheme, Plain)):
        return f"scheme {scheme.text} is not cut"
    if not shape or not shape[0] or shape[0] % count:
        return f"shape {list(shape)} does not divide into {count} parts"
    rows = shape[0] // count * math.prod(shape[1:-1])
    if rows % scheme.row_multiple(shape) and not _is_stack(info):
        return f"one of {count} parts of shape {list(shape)} is not of whole blocks of {scheme.text}"
    return ""


def _is_stack(info: TensorInfo) -> bool:
    """Tell whether each plane of a stack of matrices has a part for each of them, or is the same for all."""
    if len(info.shape) < 3:
        return False
    one = {spec.role: spec.shape for spec in info.scheme.planes(info.shape[1:], info.dtype)}
    return all(plane.shape in (one[plane.role], (info.shape[0], *one[plane.role])) for plane in info.planes)


def slice_rows(file: File, info: TensorInfo, rows: slice) -> tuple[TensorInfo, Arrays]:
    """Return the description of a tensor made of these rows, or these matrices of a stack, and its checked planes.

    In the description, ``planes`` still says where those of the whole tensor lie.

    Args:
        file: that holds the tensor.
        info: the whole tensor.
        rows: one of the parts into which ``obstacle`` lets the tensor be cut.

    Raises:
        SchemeError: tensors in this scheme cannot be cut.
        FormatError: AIB-E502 for values that no encoder writes.
    """
    cut = capabilities.find(info.scheme, "slice_rows")
    if cut is None:
        raise SchemeError(f"tensor {info.name!r}: scheme {info.scheme.text} is not cut")
    scheme, planes = cut(file, info, rows)
    return replace(info, shape=(rows.stop - rows.start, *info.shape[1:]), scheme=scheme), planes


def _part(file: File, plane: Plane, rows: slice) -> np.ndarray:
    """Return a view of rows of a plane, along its first dimension."""
    dtype, shape = DTYPES[plane.dtype], (rows.stop - rows.start, *plane.shape[1:])
    offset = plane.offset + dtype.nbytes((rows.start, *plane.shape[1:]))
    return file.view(replace(plane, shape=shape, offset=offset, length=dtype.nbytes(shape)))


def by_rows(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Slice the planes that have a row for each row of the tensor, or for each block of several.

    The others apply to all rows and stay whole.
    """
    specs = info.scheme.planes((rows.stop - rows.start, *info.shape[1:]), info.dtype)
    wanted = {spec.role: spec.shape for spec in specs}

    def cut(plane: Plane) -> np.ndarray:
        if plane.shape == wanted[plane.role]:
            return file.view(plane)
        each = info.shape[0] // plane.shape[0]  # whole blocks, as ``obstacle`` sees to
        return _part(file, plane, slice(rows.start // each, rows.stop // each))

    planes = {plane.role: cut(plane) for plane in info.planes}
    file.check_values(info, planes)
    return info.scheme, planes


def four_bit(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Slice flat blocks of nf4 and fp4."""
    return _blocks(file, info, cast(FourBit, info.scheme), rows)


def _blocks(file: File, info: TensorInfo, scheme: FourBit, rows: slice) -> tuple[FourBit, Arrays]:
    """Slice flat blocks. Nested scales that begin inside a group of scales become plain ones, equal in value."""
    planes = {plane.role: plane for plane in info.planes}
    each = math.prod(info.shape[1:])
    first, last = rows.start * each, rows.stop * each
    start, stop = first // scheme.block_size, last // scheme.block_size
    group = start // NESTED_BLOCK if scheme.nested else 0
    before = start - group * NESTED_BLOCK if scheme.nested else 0
    found = {"codes": _part(file, planes["codes"], slice(first // 2, last // 2)),
             "absmax": _part(file, planes["absmax"], slice(start - before, stop))}  # fmt: skip
    if scheme.nested:
        found["nested_absmax"] = _part(file, planes["nested_absmax"], slice(group, -(-stop // NESTED_BLOCK)))
        found["nested_offset"] = file.view(planes["nested_offset"])
    file.check_values(info, found)
    if not before:
        return scheme, found
    return replace(scheme, nested=0), {"codes": found["codes"], "absmax": scheme.absmax(found, slice(before, None))}


def nf4_cpu(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Slice the canonical planes, and the tiles if the rows consist of whole ones."""
    scheme = cast(NF4CPU, info.scheme)
    canonical, found = _blocks(file, replace(info, scheme=scheme.canonical), scheme.canonical, rows)
    if (rows.stop - rows.start) % ROWS or canonical != scheme.canonical:
        return canonical, found
    planes = {plane.role: plane for plane in info.planes}
    found["tiles"] = _part(file, planes["tiles"], rows)
    found["tile_absmax"] = file.view(planes["tile_absmax"])[:, rows]  # transposed in the file
    file.check_values(info, found)
    return scheme, found


def int8_outlier(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Slice the int8 rows, and the float16 rows that are among them."""
    scheme = cast(Int8Outlier, info.scheme)
    planes = {plane.role: plane for plane in info.planes}
    index = file.view(planes["outlier_index"])
    each = math.prod(info.shape[1:-1])  # rows of a matrix in a stack; 1 of a matrix
    first, last = (int(place) for place in np.searchsorted(index, (rows.start * each, rows.stop * each)))
    found = {role: _part(file, planes[role], rows) for role in ("codes", "row_absmax")}
    found["outlier_index"] = index[first:last] - np.uint32(rows.start * each)
    found["outlier_values"] = _part(file, planes["outlier_values"], slice(first, last))
    file.check_values(info, found)
    return replace(scheme, outliers=last - first), found
