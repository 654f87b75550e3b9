"""Joins the planes of quantized experts that transformers stacks to one tensor, without decoding them.

A checkpoint has a weight [N, K] for each expert, and for gate and up by themselves; the model has one [E, N, K], in
which the rows of up follow those of gate. Schemes store each row, or each block of rows, by itself, so that planes are
joined like values, if blocks do not reach over the end of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..formats.sources import Source, SourceTensor
from ..schemes import Scheme
from ..schemes.plain import Plain

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
    for role, stored in wanted.items():
        sizes = [_stored(scheme, part[0], role) for part in tensors]
        if (experts, sum(size[0] for size in sizes), *sizes[0][1:]) != stored:
            return None  # one number for each part, or an order of columns that each expert has by itself

    def read() -> Planes:
        found: dict[str, np.ndarray] = {}
        for expert in range(experts):
            for role, planes in _concatenated([source.planes(part[expert].name) for part in tensors]):
                found.setdefault(role, np.empty(wanted[role], planes.dtype))[expert] = planes
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


def _concatenated(parts: Sequence[Planes]) -> list[tuple[str, np.ndarray]]:
    return [(role, np.concatenate([part[role] for part in parts])) for role in parts[0]]
