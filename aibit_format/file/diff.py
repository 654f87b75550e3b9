"""Compares two models by metadata, documents and tensors, whatever their layout and shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..container.tables import TensorInfo
from ..io.mapped import Path
from ..schemes.base import matrix
from ..schemes.opaque import Opaque
from .sharded_reader import Opened, opened

_PIECE_ELEMENTS = 1 << 20  # elements decoded at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """Hold one thing that differs: its value in the first and in the second model; ``None`` if it is missing there.

    ``kind`` is ``metadata``, ``document`` (sizes), ``order`` (of tensors in both; the first position where it differs),
    or for tensors ``tensor`` (present or not), ``dtype``, ``shape``, ``scheme``, ``parameters`` (the tensor's own),
    ``transposed``, ``alias``, ``planes`` (those whose bytes differ) and ``values``: these come with the errors of the
    second's decoded values against the first's, ``sqrt(sum((b - a)^2) / sum(a^2))`` and ``max |b - a|``, ``None`` if
    they are not finite. Of tensors whose scheme or dtype is not known here, only planes are compared.
    """

    kind: str
    name: str
    a: Any = None
    b: Any = None


def diff(a: Path | Opened, b: Path | Opened) -> list[Difference]:
    """Return everything in which two models differ; an empty list if nothing does.

    Args:
        a, b: paths (of a sharded model, that of the first shard), or open files. A file opened from a path is checked
            against its digests while it is read; one that is already open, only as it was asked to be.

    Raises:
        FormatError: a file is not valid, or a plane or a document in it is damaged.
    """
    with opened(a, "touched") as x, opened(b, "touched") as y:
        return list(_differences(x, y))


def _differences(a: Opened, b: Opened) -> Iterator[Difference]:
    yield from _of_mappings("metadata", a.metadata, b.metadata)
    for found in _of_mappings("document", a.documents, b.documents):
        sizes = (None if text is None else len(text) for text in (found.a, found.b))
        yield Difference(found.kind, found.name, *sizes)
    common = [name for name in a if name in b]
    others = (name for name in b if name in a)
    moved = next(((x, y) for x, y in zip(common, others, strict=True) if x != y), None)
    if moved:
        yield Difference("order", "tensors", *moved)
    for name in [*a, *(name for name in b if name not in a)]:
        yield from _of_tensors(a, b, name)


def _of_mappings(kind: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted({*a, *b}):
        x, y = a.get(name), b.get(name)
        if name not in a or name not in b or not _equal(x, y):
            yield Difference(kind, name, x, y)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return x.dtype == y.dtype and x.tobytes() == y.tobytes()
    return type(x) is type(y) and x == y


def _of_tensors(a: Opened, b: Opened, name: str) -> Iterator[Difference]:
    x, y = (file.info(name) if name in file else None for file in (a, b))
    if x is None or y is None:
        yield Difference("tensor", name, *(info and _brief(info) for info in (x, y)))
        return
    facts = [
        Difference("dtype", name, x.dtype, y.dtype),
        Difference("shape", name, x.shape, y.shape),
        Difference("scheme", name, x.scheme.stated.text, y.scheme.stated.text),
        Difference("parameters", name, x.scheme.tensor_parameters, y.scheme.tensor_parameters),
        Difference("transposed", name, x.transposed, y.transposed),
        Difference("alias", name, x.alias_of, y.alias_of),
    ]
    yield from (fact for fact in facts if fact.a != fact.b)
    planes = a.planes(name), b.planes(name)
    if x.scheme == y.scheme and x.shape == y.shape and x.dtype == y.dtype:  # and so the same planes
        bad = [role for role, plane in planes[0].items() if not _same_bytes(plane, planes[1][role])]
        if not bad:
            return
        yield Difference("planes", name, bad, bad)
    opaque = any(isinstance(info.scheme, Opaque) for info in (x, y))
    if x.shape == y.shape and x.transposed == y.transposed and not opaque:
        a.check_values(x, planes[0])
        b.check_values(y, planes[1])
        yield Difference("values", name, *_errors((x, planes[0]), (y, planes[1])))


def _brief(info: TensorInfo) -> str:
    return f"{info.scheme.text} {list(info.shape)}"


def _same_bytes(x: np.ndarray, y: np.ndarray) -> bool:
    return np.array_equal(x.reshape(-1).view(np.uint8), y.reshape(-1).view(np.uint8))


_Stored = tuple[TensorInfo, Mapping[str, np.ndarray]]


def _errors(a: _Stored, b: _Stored) -> tuple[float | None, float | None]:
    """Return the relative RMS and the largest error of b's values against a's."""
    rows, columns = matrix(a[0].shape)
    step = max(1, _PIECE_ELEMENTS // max(columns, 1))
    noise = signal = largest = 0.0
    for start in range(0, rows if columns else 0, step):
        part = slice(start, min(start + step, rows))
        x, y = (_rows(stored, part) for stored in (a, b))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, y - x)
            noise += float(np.square(difference).sum())
            signal += float(np.square(x).sum())
            largest = float(np.maximum(largest, np.abs(difference).max()))  # NaN stays NaN
    relative = math.sqrt(noise / signal) if signal else math.inf if noise else 0.0
    return _finite(relative), _finite(largest)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(stored: _Stored, part: slice) -> np.ndarray:
    info, planes = stored
    return info.scheme.decode_rows(planes, info.shape, info.dtype, part).astype(np.float64)
