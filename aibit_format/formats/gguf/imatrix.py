"""Reads and writes llama.cpp's imatrix files: sums of squares of the inputs of each tensor, by GGUF's names.

There are two forms, and both say the same. The GGUF form (since 2025) has ``general.type`` "imatrix" and, in f32,
``NAME.in_sum2`` [experts, columns] and ``NAME.counts`` [experts, 1] for each. The old one is a list of entries, all
little-endian: i32 length of the name, the name, i32 calls, i32 values, f32 values, each the mean of squares times the
number of calls (1 where an expert saw no token); then i32 chunks, i32 length of a file's name, and that name.
See ``tools/imatrix/imatrix.cpp`` of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import SourceError
from ..files import begins_with, pages
from .file import GGUFFile

_SUMS, _COUNTS = ".in_sum2", ".counts"
_ALIGNMENT = 32
_MOST_ENTRIES, _MOST_NAME = 1 << 20, 1024
_U32, _STRING, _ARRAY, _F32 = 4, 8, 9, 0  # types of GGUF


@dataclass(frozen=True)
class Sums:
    """Hold the sums of squares of a tensor's inputs, f64 [experts, columns], and the tokens, i64 [experts]."""

    sum2: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class IMatrix:
    """Hold the contents of an imatrix file: sums by GGUF's names, names of texts, chunks and the tokens of one."""

    entries: Mapping[str, Sums]
    datasets: Sequence[str] = ()
    chunks: int = 0
    chunk_size: int = field(default=512)


def read(path: str) -> IMatrix:
    """Read a file of either form.

    Raises:
        SourceError: it is damaged, or no imatrix.
    """
    return _gguf(path) if begins_with(path, b"GGUF") else _old(path)


def encode(matrix: IMatrix, old: bool = False) -> bytes:
    """Return the bytes of a file, of the ``old`` form or of GGUF's."""
    return b"".join(_old_parts(matrix) if old else _gguf_parts(matrix))


def _gguf(path: str) -> IMatrix:
    file = GGUFFile(path)
    kind = file.metadata.get("general.type")
    if not isinstance(kind, str) or kind != "imatrix":  # an array is compared element by element
        raise SourceError(f"{path}: general.type is {str(kind)[:40]!r}, 'imatrix' is needed")
    found = {tensor.name: tensor for tensor in file.tensors}
    entries = {}
    for name, tensor in found.items():
        if name.endswith(_COUNTS) and name.removesuffix(_COUNTS) + _SUMS in found:
            continue
        base = name.removesuffix(_SUMS)
        counts = found.get(base + _COUNTS)
        if not name.endswith(_SUMS) or counts is None or (tensor.type, counts.type) != ("f32", "f32"):
            raise SourceError(f"{path}: tensor {name!r}: no sums in f32 with counts beside them")
        columns = tensor.shape[-1] if tensor.shape else 1
        sums, many = (file.read(each).view("<f4").astype(np.float64) for each in (tensor, counts))
        if not columns or sums.size != many.size * columns:
            raise SourceError(f"{path}: tensor {name!r}: {sums.size} sums for {many.size} counts, of {columns} columns")
        entries[base] = _checked(path, base, sums.reshape(-1, columns), many)
    texts = file.metadata.get("imatrix.datasets")
    numbers = [file.metadata.get(f"imatrix.{key}", 0) for key in ("chunk_count", "chunk_size")]
    chunks, size = (number if isinstance(number, int) and 0 <= number < 1 << 32 else 0 for number in numbers)
    return IMatrix(entries, texts if isinstance(texts, list) else (), chunks, size)


def _checked(path: str, name: str, sums: np.ndarray, counts: np.ndarray) -> Sums:
    if (
        not (np.isfinite(sums).all() and np.isfinite(counts).all())
        or sums.min(initial=0) < 0
        or counts.min(initial=0) < 0
    ):
        raise SourceError(f"{path}: tensor {name!r}: a sum or count is negative or not finite")
    counts = np.rint(counts).astype(np.int64)
    return Sums(np.where(counts[:, None] > 0, sums, 0.0), counts)


def _old(path: str) -> IMatrix:
    data = pages(path)
    view, place = data.data, 0

    def number(what: str, least: int = 0, most: int = (1 << 31) - 1) -> int:
        nonlocal place
        if len(view) - place < 4:
            raise SourceError(f"{path}: ends at {len(view)}, where {what} is expected: truncated, or no imatrix")
        (value,) = struct.unpack_from("<i", view, place)
        if not least <= value <= most:
            raise SourceError(f"{path}: {what} at {place} is {value}, from {least} to {most} is possible: no imatrix")
        place += 4
        return value

    def take(count: int, what: str) -> memoryview:
        nonlocal place
        if count > len(view) - place:
            raise SourceError(f"{path}: {what} at {place} of {count} bytes, {len(view) - place} are left: truncated")
        place += count
        return view[place - count : place]

    entries: dict[str, Sums] = {}
    for _ in range(number("the number of entries", 1, _MOST_ENTRIES)):
        raw = take(number("the length of a name", 1, _MOST_NAME), "a name")
        name = bytes(raw).decode("utf-8", "replace")
        calls = number(f"the calls of {name!r}")
        values = np.frombuffer(take(4 * number(f"the values of {name!r}", 1), "values"), "<f4").astype(np.float64)
        if name in entries:
            raise SourceError(f"{path}: {name!r} is there twice")
        # Means times calls: which is all that there is. Experts lie one after the other, and nothing says how many.
        entries[name] = _checked(path, name, values[None], np.array([calls], np.float64))
    chunks, texts = 0, []
    if place < len(view):  # old files end here
        chunks = number("the number of chunks")
        texts = [bytes(take(number("the length of a name", 0, 1 << 16), "a name")).decode("utf-8", "replace")]
    return IMatrix(entries, texts, chunks)


def _old_parts(matrix: IMatrix) -> Iterator[bytes]:
    yield struct.pack("<i", len(matrix.entries))
    for name, found in sorted(matrix.entries.items()):
        calls = max(-(-int(found.counts.max(initial=0)) // max(matrix.chunk_size, 1)), 1)
        means = np.ones_like(found.sum2)
        np.divide(found.sum2, found.counts[:, None], out=means, where=found.counts[:, None] > 0)
        text = name.encode()
        yield struct.pack("<i", len(text)) + text + struct.pack("<ii", calls, means.size)
        yield (means * calls).astype("<f4").tobytes()
    text = ", ".join(matrix.datasets).encode()
    yield struct.pack("<ii", matrix.chunks, len(text)) + text


def _gguf_parts(matrix: IMatrix) -> Iterator[bytes]:
    values = [
        _text("general.type") + struct.pack("<I", _STRING) + _text("imatrix"),
        _text("imatrix.datasets") + struct.pack("<IIQ", _ARRAY, _STRING, len(matrix.datasets))
        + b"".join(map(_text, matrix.datasets)),
        _text("imatrix.chunk_count") + struct.pack("<II", _U32, matrix.chunks),
        _text("imatrix.chunk_size") + struct.pack("<II", _U32, matrix.chunk_size),
    ]  # fmt: skip
    tensors: list[tuple[str, np.ndarray]] = []
    for name, found in sorted(matrix.entries.items()):
        tensors.append((name + _SUMS, found.sum2.astype("<f4")))
        tensors.append((name + _COUNTS, found.counts.astype("<f4")[:, None]))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values)
    offset = 0
    for name, array in tensors:
        shape = array.shape[::-1]  # innermost first
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    yield head + bytes(-len(head) % _ALIGNMENT)
    for _, array in tensors:
        yield array.tobytes() + bytes(-array.nbytes % _ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
