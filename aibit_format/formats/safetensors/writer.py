"""Writes a model directory, all of it or nothing: safetensors files tensor by tensor, and documents beside them.

The safetensors files equal those of the reference implementation byte for byte: entries are sorted by descending dtype
and then by name, the header is padded with spaces to eight bytes. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...dtypes import DTYPES
from ...errors import WriteError
from ...file.progress import Progress
from ...file.sharded_writer import parse_size
from ...io.atomic import AtomicFolder, exchange, keep_mode, sync_folder
from .reader import DTYPE_NAMES

SHARD_BYTES = 5_000_000_000
_SINGLE, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_THEIR_NAMES = {ours: theirs for theirs, ours in DTYPE_NAMES.items()}
# The order of dtypes in the reference implementation, which writes the last ones first.
_ORDER = (
    "bool", "f4_e2m1", "f6_e2m3", "f6_e3m2", "u8", "i8", "f8_e5m2", "f8_e4m3", "f8_e8m0", "i16", "u16", "f16", "bf16",
    "i32", "u32", "f32", "f64", "i64", "u64",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Describe one tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return its size in bytes; the packed elements of all rows fill them."""
        return -(-math.prod(self.shape) * DTYPES[self.dtype].bits // 8)

    @property
    def stored(self) -> tuple[int, ...]:
        """Return the shape of the array of its values: that of all bytes where elements are packed."""
        return (self.nbytes,) if DTYPES[self.dtype].is_packed else self.shape


@dataclass(frozen=True, slots=True)
class Item:
    """Describe a tensor to be written: the entries it becomes, and a function that makes their arrays when needed."""

    name: str
    entries: tuple[Entry, ...]
    make: Callable[[], Sequence[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Return the bytes of its entries."""
        return sum(entry.nbytes for entry in self.entries)


class SafetensorsFile:
    """Write a safetensors file whose entries are known in advance, one by one in any order. Use it as a context.

    ``descriptor`` is that of an empty file to write into, which stays open; by default ``path`` is created.
    """

    def __init__(
        self, path: str, entries: Iterable[Entry], metadata: Mapping[str, str], descriptor: int | None = None
    ) -> None:
        self._path = path
        entries = list(entries)
        _check_dtypes(path, entries)
        ordered = sorted(entries, key=lambda entry: (-_ORDER.index(entry.dtype), entry.name))
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        places, end = {}, 0
        for entry in ordered:
            places[entry.name], end = end, end + entry.nbytes
            offsets = [places[entry.name], end]
            header[entry.name] = {
                "dtype": _THEIR_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets,
            }  # fmt: skip
        if len(places) < len(ordered):
            raise WriteError(f"{path}: {len(ordered)} tensors under {len(places)} names")
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._entries = {entry.name: entry for entry in ordered}
        self._places = {name: 8 + len(text) + place for name, place in places.items()}
        target = path if descriptor is None else os.dup(descriptor)
        self._file = open(target, "xb" if descriptor is None else "wb", buffering=0)  # noqa: SIM115 - see __exit__
        os.truncate(self._file.fileno(), 8 + len(text) + end)
        self._put(len(text).to_bytes(8, "little") + text, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if error is None and self._places:
                raise WriteError(f"{self._path}: {len(self._places)} tensors were not written: {min(self._places)!r}")
            if error is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one entry, once."""
        entry = self._entries[name]
        if array.dtype != DTYPES[entry.dtype].numpy or array.shape != entry.stored:
            raise WriteError(
                f"{self._path}: tensor {name!r}: {array.dtype}{list(array.shape)}, "
                f"planned {entry.dtype}{list(entry.shape)}"
            )
        place = self._places.pop(name)
        if array.size:
            self._put(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, place)

    def _put(self, data: bytes | memoryview, place: int) -> None:
        view = memoryview(data)
        while len(view):
            written = os.pwrite(self._file.fileno(), view, place)
            view, place = view[written:], place + written


def _check_dtypes(path: str, entries: Iterable[Entry]) -> None:
    """Raise WriteError for a tensor that safetensors has no dtype for, or that does not fill whole bytes."""
    for entry in entries:
        if entry.dtype not in _THEIR_NAMES:
            raise WriteError(f"{path}: tensor {entry.name!r}: safetensors has no dtype for {entry.dtype}")
        if math.prod(entry.shape) * DTYPES[entry.dtype].bits % 8:
            raise WriteError(
                f"{path}: tensor {entry.name!r}: {entry.dtype}{list(entry.shape)} does not fill whole bytes, as "
                "safetensors wants"
            )


def write_directory(
    path: str,
    items: Sequence[Item],
    documents: Mapping[str, bytes],
    *,
    max_shard_size: int | str = SHARD_BYTES,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write weights and documents into the directory ``path``, which appears once all of them are on the disk.

    It may already exist if it is empty, or with ``overwrite``: finished files are then moved into it one by one, and
    files that are not replaced stay, except weights of an earlier export.

    Raises:
        WriteError: something is there, a document has the name of a file of weights, or the disk failed.
    """
    path = path.rstrip(os.sep) or os.sep
    check_target(path, overwrite)
    shards = shards_of(items, parse_size(max_shard_size))
    files = {_shard_name(i, len(shards)): shard for i, shard in enumerate(shards)}
    texts = dict(documents)
    if clash := sorted({name.lower() for name in texts} & {_INDEX, *files}):
        raise WriteError(f"{path}: document {clash[0]!r} has the name of a file of weights")
    if len(shards) > 1:
        texts[_INDEX] = _index(files)
    done, total = 0, sum(item.nbytes for item in items)
    try:
        with AtomicFolder(path) as partial:
            for name, shard in files.items():
                entries = [entry for item in shard for entry in item.entries]
                with SafetensorsFile(os.path.join(partial.name, name), entries, {"format": "pt"}) as out:
                    for item in shard:
                        for entry, array in zip(item.entries, item.make(), strict=True):
                            out.write(entry.name, array)
                        done += item.nbytes
                        if on_progress is not None:
                            on_progress(done, total, item.name)
            for name, text in texts.items():
                _write_text(os.path.join(partial.name, *name.split("/")), text)
            names = [*files, *texts]
            _publish(partial.name, path, names)
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}") from error
    return [os.path.join(path, *name.split("/")) for name in sorted(names)]


def check_target(path: str, overwrite: bool) -> None:
    """Raise WriteError if ``path`` exists and is not a directory, or is not empty and ``overwrite`` is off."""
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        raise WriteError(f"{path}: is not a directory")
    if os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise WriteError(f"{path}: exists and is not empty; say overwrite=True (--force) to replace files in it")


def shards_of(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """Cut ``items`` in order so that no part exceeds ``limit`` bytes unless it is a single tensor."""
    shards: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _shard_name(i: int, count: int) -> str:
    return _SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def _index(files: Mapping[str, Sequence[Item]]) -> bytes:
    total = sum(item.nbytes for shard in files.values() for item in shard)
    places = {entry.name: file for file, shard in files.items() for item in shard for entry in item.entries}
    value = {"metadata": {"total_size": total}, "weight_map": places}
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _write_text(path: str, text: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: str, path: str, names: Sequence[str]) -> None:
    """Give the finished directory its name, or put its files in the place of those in the existing one."""
    sync_folder(partial)
    if not os.path.isdir(path):
        os.rename(partial, path)  # fails if something was put there meanwhile
    else:
        path = os.path.realpath(path)
        for name in names:
            folder = os.path.dirname(os.path.join(path, *name.split("/")))
            if folder != path and os.path.islink(folder):
                raise WriteError(f"{folder}: is a link; nothing is written through it")
        if _in_use(path) or not _adopt(path, partial, names) or not exchange(partial, path):
            _move(partial, path, names)
    sync_folder(os.path.dirname(path) or ".")


def _in_use(path: str) -> bool:
    """Tell whether this process, and whoever started it, is in a directory, and would be left in the old one."""
    here = os.getcwd()
    return os.path.commonpath([here, path]) == path


def _stale(name: str) -> bool:
    """Tell whether a loader would take an older file for the model's weights, or their index."""
    return name in (_SINGLE, _INDEX) or (name.startswith("model-") and name.endswith(".safetensors"))


def _adopt(path: str, partial: str, names: Sequence[str]) -> bool:
    """Link what else is in a directory into the one that will take its place, and take over all permissions.

    Returns whether that could be done: another file system may be mounted inside.
    """
    try:
        for folder, inner, files in os.walk(path):
            here = os.path.relpath(folder, path)
            there = os.path.normpath(os.path.join(partial, here))
            os.makedirs(there, exist_ok=True)
            os.chmod(there, stat.S_IMODE(os.stat(folder).st_mode))
            for name in [*files, *(each for each in inner if os.path.islink(os.path.join(folder, each)))]:
                relative, old = os.path.normpath(os.path.join(here, name)), os.path.join(folder, name)
                if relative.replace(os.sep, "/") in names:
                    keep_mode(os.path.join(there, name), old)
                elif not _stale(relative):
                    os.link(old, os.path.join(there, name), follow_symlinks=False)
    except OSError:
        return False
    return True


def _move(partial: str, path: str, names: Sequence[str]) -> None:
    """Move files into a directory, ``config.json`` last: whoever loads it meanwhile finds no model, and none mixed."""
    moves = {os.path.join(partial, *name.split("/")): os.path.join(path, *name.split("/")) for name in names}
    for source, target in moves.items():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        keep_mode(source, target)
    config = os.path.join(path, _CONFIG)
    with suppress(FileNotFoundError):
        os.unlink(config)
    last = {source: target for source, target in moves.items() if target == config}
    for source, target in moves.items():
        if target != config:
            os.replace(source, target)
    for name in set(os.listdir(path)) - set(names):
        if _stale(name):
            os.unlink(os.path.join(path, name))
    for source, target in last.items():
        os.replace(source, target)
