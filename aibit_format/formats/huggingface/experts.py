"""Takes fused experts apart: checkpoints have a weight for each, and for gate and up by themselves.

The tensor of the model is [E, N, K], in which the rows of up follow those of gate; a checkpoint has matrices, whose
planes are slices of those of the tensor. ``formats.join`` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from ...schemes.base import PlaneSpec
from .forms import NotHeldError, Planes, Stored


def take_apart(fused: Stored, names: Sequence[str]) -> list[Stored]:
    """Return the weights of experts.

    Args:
        fused: the tensor.
        names: of the weights whose rows follow one another, with ``*`` for the number of the expert.

    Raises:
        NotHeldError: a block of rows reaches over the end of a weight.
    """
    experts, rows, columns = fused.shape
    each = rows // len(names)
    shape = (each, columns)
    if rows % len(names) or (len(names) > 1 and each % fused.scheme.row_multiple(shape)):
        raise NotHeldError(f"gate and up of an expert, of {each} rows each, share blocks")
    specs, read = fused.scheme.planes(shape, fused.dtype), cache(fused.read)
    return [
        Stored(name.replace("*", str(expert)), shape, fused.dtype, fused.scheme,
               partial(_slices, read, specs, expert, place))
        for expert in range(experts)
        for place, name in enumerate(names)
    ]  # fmt: skip


def _slices(read: Callable[[], Planes], specs: Sequence[PlaneSpec], expert: int, place: int) -> dict[str, np.ndarray]:
    """Return the planes of one weight: what is of the whole expert, or of all of them, stays whole."""
    planes, found = read(), {}
    for spec in specs:
        plane = planes[spec.role]
        own = plane[expert] if plane.ndim > len(spec.stored) else plane
        count = spec.stored[0]
        found[spec.role] = own if own.shape == spec.stored else own[place * count : (place + 1) * count]
    return found
