"""Joins the planes of quantized experts that transformers stacks to one tensor, without decoding them.

A checkpoint has a weight [N, K] for each expert, and for gate and up by themselves; the model has one [E, N, K], in
which the rows of up follow those of gate. Schemes store each row, or each block of rows, by itself, so that planes are
joined like values, if blocks do not reach over the end of a part. A number for a whole matrix (the global scale of
nvfp4, the scale of fp8 for a tensor) is that of all parts if they have the same, as exporters take care of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..schemes import Scheme
from ..schemes.plain import Plain
from .sources import Source, SourceTensor

Planes = Mapping[str, np.ndarray]


Joined = tuple[SourceTensor, Callable[[], Planes]]  # a tensor, and a function that reads its planes


def joined(source: Source, name: str, parts: Sequence[Sequence[str]]) -> Joined | None:
    """Return the tensor that parts become, and a function that reads its planes; None if they have to be decoded.

    Args:
        source: of the parts.
        name: of the tensor.
        parts: for each part whose rows follow one another, the names of the tensors of all experts.
    """
    tensors = [[source.tensors[each] for each in part] for part in parts]
    scheme = _common(tensors)
    if scheme is None:
        return None
    first, experts = tensors[0][0], len(tensors[0])
    shape = (experts, sum(part[0].shape[0] for part in tensors), first.shape[1])
    wanted = {spec.role: spec.stored for spec in scheme.planes(shape, first.dtype)}
    shared: list[str] = []
    for role, stored in wanted.items():
        sizes = [_stored(scheme, part[0], role) for part in tensors]
        if (experts, sum(size[0] for size in sizes), *sizes[0][1:]) == stored:
            continue
        if any((experts, *size) != stored for size in sizes):
            return None  # an order of columns that each expert has by itself
        shared.append(role)
    if shared and not _same(source, parts, shared):
        return None

    def read() -> Planes:
        found: dict[str, np.ndarray] = {}
        for expert in range(experts):
            planes = [source.planes(part[expert].name) for part in tensors]
            for role, stored in wanted.items():
                plane = planes[0][role] if role in shared else np.concatenate([each[role] for each in planes])
                found.setdefault(role, np.empty(stored, plane.dtype))[expert] = plane
        return found

    return SourceTensor(name, shape, first.dtype, first.file, scheme), read


def _common(tensors: Sequence[Sequence[SourceTensor]]) -> Scheme | None:
    """Return the scheme of all tensors, if they have one, and shapes that can be joined by rows of whole blocks."""
    first = tensors[0][0]
    scheme = first.scheme
    if scheme is None or isinstance(scheme, Plain):
        return None
    for part in tensors:
        shape = part[0].shape
        if len(part) != len(tensors[0]) or len(shape) != 2 or shape[1] != first.shape[1]:
            return None
        if len(tensors) > 1 and shape[0] % scheme.row_multiple(shape):
            return None
        if any((each.scheme, each.shape, each.transposed) != (scheme, shape, False) for each in part):
            return None
    return scheme


def _stored(scheme: Scheme, tensor: SourceTensor, role: str) -> tuple[int, ...]:
    return next(spec.stored for spec in scheme.planes(tensor.shape, tensor.dtype) if spec.role == role)


def _same(source: Source, parts: Sequence[Sequence[str]], roles: Sequence[str]) -> bool:
    """Tell whether the parts of each expert have the same planes of these roles."""
    for first, *others in zip(*parts, strict=True):
        planes = source.planes(first)
        for other in map(source.planes, others):
            if not all(np.array_equal(planes[role], other[role]) for role in roles):
                return False
    return True
