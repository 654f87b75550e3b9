"""Some rows of a stored matrix as a matrix of its own, in a scheme of its own: nothing else of it is read.

On a mapped file what comes is views of it, but for scales that have to be worked out. One function a kind of scheme,
one line in ``CUTS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...container.tables import Plane, TensorInfo
from ...dtypes import DTYPES
from ...file.reader import File
from ...schemes import Scheme
from ...schemes.cluster import Cluster
from ...schemes.fourbit import NESTED_BLOCK, FourBit
from ...schemes.fp8 import Fp8E4M3
from ...schemes.ggml import GGML
from ...schemes.int4_group import Int4Group
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Int8Absmax, Int8ZeroPoint
from ...schemes.int8_outlier import Int8Outlier
from ...schemes.nf4_cpu import NF4CPU, ROWS
from ...schemes.plain import Plain

Arrays = dict[str, np.ndarray]


def obstacle(info: TensorInfo, count: int) -> str:
    """Why the tensor cannot be cut into ``count`` parts of equally many rows; empty if it can."""
    if type(info.scheme) not in CUTS or (len(info.shape) != 2 and not isinstance(info.scheme, Plain)):
        return f"scheme {info.scheme.text} is not cut"
    if not info.shape or not info.shape[0] or info.shape[0] % count:
        return f"shape {list(info.shape)} does not divide into {count} parts"
    if isinstance(info.scheme, FourBit) and math.prod(info.shape) // count % info.scheme.block_size:
        return f"one of {count} parts of shape {list(info.shape)} is not of whole blocks of {info.scheme.block_size}"
    return ""


def read_rows(file: File, info: TensorInfo, rows: slice) -> tuple[TensorInfo, Arrays]:
    """These rows as a tensor, and its planes, checked; its ``planes`` still say where the whole tensor's lie.

    Args:
        rows: one of the parts that ``obstacle`` has nothing against.

    Raises:
        FormatError: AIB-E502 for values that no encoder writes.
    """
    scheme, planes = CUTS[type(info.scheme)](file, info, rows)
    return replace(info, shape=(rows.stop - rows.start, *info.shape[1:]), scheme=scheme), planes


def _part(file: File, plane: Plane, rows: slice) -> np.ndarray:
    """Rows of a plane, along its first dimension: nothing else of it is read."""
    width = math.prod(plane.shape[1:]) * DTYPES[plane.dtype].bits // 8
    shape = (rows.stop - rows.start, *plane.shape[1:])
    return file.view(replace(plane, shape=shape, offset=plane.offset + rows.start * width, length=shape[0] * width))


def _rows(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Of schemes whose planes have a row for each row of the tensor, or are the same for all of its rows."""
    specs = info.scheme.planes((rows.stop - rows.start, *info.shape[1:]), info.dtype)
    wanted = {spec.role: spec.shape for spec in specs}
    planes = {
        plane.role: file.view(plane) if plane.shape == wanted[plane.role] else _part(file, plane, rows)
        for plane in info.planes
    }
    file.check_values(info, planes)
    return info.scheme, planes


def _blocks(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """Of flat blocks. Nested scales that do not begin where a group of them begins become plain ones, the same."""
    scheme: Any = info.scheme
    planes = {plane.role: plane for plane in info.planes}
    first, last = rows.start * info.shape[1], rows.stop * info.shape[1]
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


def _tiles(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """The canonical planes, and the tiles where the rows are whole ones."""
    scheme: Any = info.scheme
    canonical, found = _blocks(file, replace(info, scheme=scheme.canonical), rows)
    if (rows.stop - rows.start) % ROWS or canonical != scheme.canonical:
        return canonical, found
    planes = {plane.role: plane for plane in info.planes}
    found["tiles"] = _part(file, planes["tiles"], rows)
    found["tile_absmax"] = file.view(planes["tile_absmax"])[:, rows]  # transposed in the file
    file.check_values(info, found)
    return scheme, found


def _outliers(file: File, info: TensorInfo, rows: slice) -> tuple[Scheme, Arrays]:
    """int8 rows, and those of the float16 ones that are among them."""
    scheme: Any = info.scheme
    planes = {plane.role: plane for plane in info.planes}
    index = file.view(planes["outlier_index"])
    first, last = (int(place) for place in np.searchsorted(index, (rows.start, rows.stop)))
    found = {role: _part(file, planes[role], rows) for role in ("codes", "row_absmax")}
    found["outlier_index"] = index[first:last] - np.uint32(rows.start)
    found["outlier_values"] = _part(file, planes["outlier_values"], slice(first, last))
    file.check_values(info, found)
    return replace(scheme, outliers=last - first), found


# How a rank's rows are read, and in which scheme they then are.
CUTS: dict[type[Scheme], Callable[[File, TensorInfo, slice], tuple[Scheme, Arrays]]] = {
    **dict.fromkeys((Plain, Int8, Int8Absmax, Int8ZeroPoint, Fp8E4M3, Int4Group, GGML, Cluster), _rows),
    FourBit: _blocks,
    NF4CPU: _tiles,
    Int8Outlier: _outliers,
}
