"""Selects rows, columns or matrices of a stored tensor in its planes, without decoding what they stand for.

A scheme cuts a tensor into blocks with numbers of their own. What is kept can be taken out of the planes if it consists
of whole blocks; the values are the same bits then. How planes are laid out is not known here: it follows from the
shapes that a scheme states for tensors of other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SchemeError
from .base import Planes, Scheme
from .fourbit import FourBit
from .nf4_cpu import NF4CPU
from .opaque import Opaque

MATRICES, ROWS, COLUMNS = 0, 1, 2  # axes of a stack of matrices; a vector has rows
Kept = Mapping[int, np.ndarray]  # axis -> which are kept, i64 [n], ascending; or [matrices, n], some of each matrix

_LARGEST_BLOCK = 1 << 20  # rows or columns; no scheme has larger ones
_OF_COLUMNS = ("group_index", "column_order")  # say of each column where it belongs, and not by its place
_OF_VALUES = ("outlier_index",)  # planes whose size follows from the values


@dataclass(frozen=True)
class Selection:
    """Describe what is kept of a tensor in a scheme: the scheme and shape of what is left, and how planes are cut.

    ``steps`` are, for each axis that is cut, the axis of each plane that has a part for every block of ``size``, the
    number of these blocks, and which are kept.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    origin: Scheme
    whole: tuple[int, ...]  # the shape of the whole tensor
    steps: tuple[tuple[Mapping[str, int], int, np.ndarray], ...]

    def planes(self, planes: Planes) -> dict[str, np.ndarray]:
        """Return the planes of what is kept, from those of the whole tensor."""
        scheme, found = _rows_of_blocks(self.origin, planes, self.whole)
        for axes, count, kept in self.steps:
            for role, axis in axes.items():
                found[role] = _taken(found[role], axis, count, kept)
        flat = isinstance(scheme, FourBit)
        return {role: np.ascontiguousarray(plane.reshape(-1) if flat else plane) for role, plane in found.items()}


def shape_of(shape: tuple[int, ...], kept: Kept) -> tuple[int, ...]:
    """Return the shape of what is kept of a tensor.

    Raises:
        ValueError: the tensor has no such axis.
    """
    made = list(shape)
    for axis, index in kept.items():
        made[_place(shape, axis)] = index.shape[-1]
    return tuple(made)


def select(scheme: Scheme, shape: tuple[int, ...], dtype: str, kept: Kept) -> Selection | None:
    """Return how planes are cut to what is kept of a tensor; ``None`` if it has to be decoded."""
    stored = _stored_as(scheme, shape)
    if stored is None:
        return None
    left, steps = shape, []
    for axis, index in sorted(kept.items()):
        place = _place(shape, axis)
        found = _blocks(stored, left, dtype, place, index)
        if found is None:
            return None
        steps.append(found)
        left = (*left[:place], index.shape[-1], *left[place + 1 :])
    try:
        stored.planes(left, dtype)
    except SchemeError:
        return None
    return Selection(stored, left, scheme, shape, tuple(steps))


def selected_values(values: np.ndarray, kept: Kept) -> np.ndarray:
    """Return what is kept of the values of a tensor."""
    for axis, index in sorted(kept.items()):
        values = _taken(values, _place(values.shape, axis), values.shape[_place(values.shape, axis)], index)
    return values


def _place(shape: tuple[int, ...], axis: int) -> int:
    """Return the dimension of a tensor that is an axis of a stack of matrices."""
    if len(shape) == 1 and axis == ROWS:
        return 0
    place = len(shape) - 3 + axis
    if len(shape) not in (2, 3) or place < 0:
        raise ValueError(f"a tensor of shape {shape} has no axis {axis}")
    return place


def _stored_as(scheme: Scheme, shape: tuple[int, ...]) -> Scheme | None:
    """Return the scheme of cut planes; ``None`` if planes of this one cannot be cut."""
    if isinstance(scheme, NF4CPU):
        scheme = scheme.canonical
    if isinstance(scheme, FourBit):
        return replace(scheme, nested=0) if len(shape) > 1 and not shape[-1] % scheme.block_size else None
    return None if scheme.of_tensor or isinstance(scheme, Opaque) else scheme


def _sizes(scheme: Scheme, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of the array of each plane; ``None`` if the scheme cannot hold such a tensor."""
    if isinstance(scheme, FourBit):  # by rows, each of whole blocks
        *rows, columns = shape
        if columns % scheme.block_size:
            return None
        return {"codes": (*rows, columns // 2), "absmax": (*rows, columns // scheme.block_size)}
    try:
        return {spec.role: spec.stored for spec in scheme.planes(shape, dtype)}
    except SchemeError:
        return None


def _blocks(
    scheme: Scheme, shape: tuple[int, ...], dtype: str, place: int, kept: np.ndarray
) -> tuple[Mapping[str, int], int, np.ndarray] | None:
    """Return which axis of each plane is cut, in how many blocks, and which of them are kept; ``None`` if it cannot be.

    Blocks are as large as what is kept allows, and a plane must have so much of an axis for each of them.
    """
    size = shape[place]
    block = _block_size(kept, size)
    sizes = [_sizes(scheme, (*shape[:place], n, *shape[place + 1 :]), dtype) for n in (size, block)]
    whole, one = sizes
    if whole is None or one is None:
        return None
    count, axes = size // block, {}
    for role, stored in whole.items():
        if stored == one[role]:
            continue  # it does not depend on how long the axis is
        if role in (*_OF_COLUMNS, *_OF_VALUES) and place == len(shape) - 1:
            return None
        changed = [i for i, (a, b) in enumerate(zip(stored, one[role], strict=True)) if a != b]
        if len(changed) != 1 or stored[changed[0]] != count * one[role][changed[0]]:
            return None
        if kept.ndim > 1 and not changed[0]:
            return None  # all matrices share it
        axes[role] = changed[0]
    return axes, count, kept[..., ::block] // block


def _block_size(kept: np.ndarray, size: int) -> int:
    """Return the largest power of two such that what is kept consists of whole blocks of so many, as all does."""
    block = math.gcd(size, kept.shape[-1], _LARGEST_BLOCK)
    while block > 1:
        blocks = kept.reshape(*kept.shape[:-1], -1, block)
        if not (blocks[..., 0] % block).any() and (blocks == blocks[..., :1] + np.arange(block)).all():
            break
        block //= 2
    return block


def _taken(plane: np.ndarray, axis: int, count: int, kept: np.ndarray) -> np.ndarray:
    """Take blocks out of an axis of a plane that consists of ``count`` of them."""
    if kept.ndim > 1:
        return np.stack([_taken(part, axis - 1, count, index) for part, index in zip(plane, kept, strict=True)])
    before, after = plane.shape[:axis], plane.shape[axis + 1 :]
    blocks = plane.reshape(*before, count, -1, *after)
    return np.take(blocks, kept, axis).reshape(*before, -1, *after)


def _rows_of_blocks(scheme: Scheme, planes: Planes, shape: tuple[int, ...]) -> tuple[Scheme, dict[str, np.ndarray]]:
    """Return planes in which each row of a matrix has a row; nested scales become plain ones, equal in value."""
    if isinstance(scheme, NF4CPU):
        scheme = scheme.canonical
    if not isinstance(scheme, FourBit):
        return scheme, dict(planes)
    *rows, columns = shape
    absmax = scheme.absmax(planes, slice(None)) if scheme.nested else planes["absmax"]
    return scheme, {
        "codes": planes["codes"].reshape(*rows, columns // 2),
        "absmax": absmax.reshape(*rows, columns // scheme.block_size),
    }
