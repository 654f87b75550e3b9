"""Carries statistics of a model's activations over to a model from which something was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...calibrate.statistics import Inputs, Statistics
from ...schemes.select import COLUMNS, MATRICES, Kept


def carried(
    statistics: Statistics, names: Mapping[str, str], kept: Mapping[str, Kept], ties: Mapping[str, str]
) -> Statistics:
    """Return the statistics of the inputs that are left, by the names that weights have in the smaller model.

    What an input was is not what it is now, where layers before it compute something else. Angles are left out.

    Args:
        statistics: of the whole model.
        names: of the smaller model's parameters -> those of the whole one.
        kept: what is left of parameters, by the names of the smaller model.
        ties: of the smaller model.
    """
    made = {
        name: _left(statistics.inputs[old], kept.get(name, {}))
        for name, old in names.items()
        if old in statistics.inputs
    }
    return Statistics(statistics.about, made, ties)


def _left(found: Inputs, kept: Kept) -> Inputs:
    matrices, columns = kept.get(MATRICES), kept.get(COLUMNS)
    if matrices is None and columns is None:
        return found
    changed: dict[str, np.ndarray | None] = {}
    for key in ("counts", "low", "high", "routed"):
        changed[key] = _taken(getattr(found, key), matrices, None, 0)
    for key in ("sum2", "sum", "magnitude", "largest"):
        changed[key] = _taken(getattr(found, key), matrices, columns, 1)
    hessian = None if found.hessian is None else np.asarray(found.hessian)
    changed["hessian"] = _taken(hessian, matrices, columns, 2)
    return replace(found, **changed)  # type: ignore[arg-type]


def _taken(
    array: np.ndarray | None, matrices: np.ndarray | None, columns: np.ndarray | None, axes: int
) -> np.ndarray | None:
    """Take experts, and columns in so many dimensions after them; columns may be others in each expert."""
    if array is None:
        return None
    array = array if matrices is None else array[matrices]
    if columns is None:
        return array
    each = columns if columns.ndim > 1 else np.broadcast_to(columns, (len(array), len(columns)))
    for axis in range(1, axes + 1):
        index = each if axes == 1 else each[:, :, None] if axis == 1 else each[:, None, :]
        array = np.take_along_axis(array, index, axis)
    return array
