"""Opens a model in several files, ``model-00001-of-00003.aibit`` and so on, as one, given the first.

Every shard is a valid file with whole tensors in it. The first has the documents, all metadata, the position of each
tensor in the model, and the root digests of the others: so its own root stands for the whole set.

While a model is being replaced by another with as many shards, and if that was interrupted, some of its shards lie
beside their names, with ``.previous`` appended. The first shard that is there identifies its own by their roots.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..container import validate
from ..container.metadata import Value
from ..container.signatures import Keys
from ..container.tables import FileInfo, TensorInfo
from ..errors import FormatError, LoadError, Problem
from ..io import hub
from ..io.mapped import Mapped, Path, is_url
from .reader import Documents, File, Level, Verified, read_info

__all__ = [
    "PREVIOUS", "Opened", "Sharded", "find", "listed", "open", "opened", "paths_of", "root_of", "shard_path", "whole",
]  # fmt: skip

PREVIOUS = ".previous"  # appended to the name of a shard that is being replaced

# The part of a shard's name before the extension (and before the query of a URL).
_NUMBERS = re.compile(r"-(\d{5})-of-(\d{5})(?=(\.\w+)?(\?.*)?$)")


def shard_path(path: Path, index: int, count: int) -> str:
    """Return the path of shard ``index``, from 1, of the model ``path``: ``m-00001-of-00003.aibit`` of ``m.aibit``."""
    stem, extension = os.path.splitext(os.fspath(path))
    return f"{stem}-{index:05d}-of-{count:05d}{extension}"


def paths_of(path: Path) -> list[str]:
    """List the files of a model, from the name of its first file alone: for a sharded one all shards, in order."""
    name = os.fspath(path)
    found = _NUMBERS.search(name)
    return _siblings(name, int(found[2])) if found and int(found[1]) == 1 else [name]


def _siblings(first: str, count: int) -> list[str]:
    return [_NUMBERS.sub(f"-{index:05d}-of-{count:05d}", first) for index in range(1, count + 1)]


def find(name: str, root: str | None) -> str:
    """Return the path of the shard with this root: beside ``name`` if it is only there, else ``name``."""
    if root is None or root_of(name) == root:  # checked first: shards move away from their names, never back
        return name
    return beside if root_of(beside := name + PREVIOUS) == root else name


def listed(first: str, count: int) -> list[str | None]:
    """Return the root that the first shard lists for each of ``count`` shards; ``None`` for its own, or if missing."""
    values = found[0].metadata if (found := _read(first)) is not None else {}
    if (values.get("shard.index"), values.get("shard.count")) != (1, count):
        return [None] * count
    return [None, *values["shard.roots"]]


def root_of(path: str) -> str | None:
    """Return the root of a file, or ``None`` if there is no valid one. No signature is demanded."""
    found = _read(path)
    return None if found is None else found[1]


def _read(path: str) -> tuple[FileInfo, str] | None:
    try:
        storage = Mapped(path)
    except FormatError:
        return None
    try:
        return read_info(storage)
    except FormatError:
        return None
    finally:
        storage.close()


class Sharded:
    """Present all shards of a model with the methods of a ``File``: tensors, documents and metadata by name.

    Args:
        first: the first shard, open. The others are opened at its level, and closed with it.
        signed_by: public keys of which one must have signed each of the others too: the root digests that the first
            lists detect damage, not forgery.

    Raises:
        FormatError: with the path of a shard in it. AIB-E607: it is missing, or cannot be opened. AIB-E608: it is not
            the one that the first lists. AIB-E609: it contradicts the first about the set. AIB-E414, AIB-E310: names,
            or metadata about all tensors, break a rule that holds for the whole set.
    """

    def __init__(self, first: File, signed_by: Keys | None = None) -> None:
        self.path = first.path
        self.level: Level = first.level
        parts = [first]
        try:
            self.parts = tuple(_open_others(first, parts, signed_by))
            self._parts = _holders(self.parts)
            self._names = _in_order(self.parts)
        except BaseException:
            for part in parts:
                part.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def close(self) -> None:
        """Close all shards; see ``File.close``."""
        for part in self.parts:
            part.close()

    def __repr__(self) -> str:
        return f"<aibit model {self.path}: {len(self)} tensors in {len(self.parts)} shards, {self.size} bytes>"

    @property
    def metadata(self) -> Mapping[str, Value]:
        """Return the model's metadata: that of the first shard, without its keys about the set."""
        found = self.parts[0].metadata
        return {key: value for key, value in found.items() if not key.startswith(validate.SHARD)}

    @property
    def documents(self) -> Documents:
        """Return the model's documents, which are in the first shard."""
        return self.parts[0].documents

    @property
    def size(self) -> int:
        """Return the size of all files in bytes."""
        return sum(part.size for part in self.parts)

    @property
    def root(self) -> str:
        """Return the first shard's root digest in hex; it covers those of the others."""
        return self.parts[0].root

    def keys(self) -> list[str]:
        """Return the tensor names in the model's order."""
        return list(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def part(self, name: str) -> File:
        """Return the shard that the tensor lies in, to which the offsets of its planes refer."""
        return self._parts[name]

    def info(self, name: str) -> TensorInfo:
        """See ``File.info``."""
        return self.part(name).info(name)

    def planes(self, name: str) -> dict[str, np.ndarray]:
        """See ``File.planes``."""
        return self.part(name).planes(name)

    def writable(self) -> Self:
        """See ``File.writable``."""
        found = copy.copy(self)
        found.parts = tuple(part.writable() for part in self.parts)
        found._parts = _holders(found.parts)
        return found

    def dequantize(self, name: str) -> np.ndarray:
        """See ``File.dequantize``."""
        return self.part(name).dequantize(name)

    def check_known(self, info: TensorInfo) -> None:
        """See ``File.check_known``."""
        self.part(info.name).check_known(info)

    def check_values(self, info: TensorInfo, planes: Mapping[str, np.ndarray]) -> None:
        """See ``File.check_values``."""
        self.part(info.name).check_values(info, planes)

    def check_document(self, name: str) -> Any:
        """See ``File.check_document``."""
        return self.parts[0].check_document(name)

    def verify(self, jobs: int | None = None) -> Verified:
        """Check every byte of every shard; see ``File.verify``."""
        for part in self.parts:
            part.verify(jobs)
        return self.verified("full")

    def verified(self, level: Level | None = None) -> Verified:
        """Return what opening at this level has checked, in all files."""
        found = [part.verified(level) for part in self.parts]
        return Verified(
            level or self.level, sum(v.tensors for v in found), sum(v.planes for v in found),
            sum(v.documents for v in found), sum(v.leaves for v in found), sum(v.bytes for v in found),
            self.root, found[0].signed_by if len({v.signed_by for v in found}) == 1 else None, len(found),
            dict(sum((Counter(v.unknown) for v in found), Counter())),
        )  # fmt: skip


Opened = File | Sharded


def open(
    source: Path | bytes | bytearray | memoryview, verify: Level = "structure", signed_by: Keys | None = None
) -> Opened:
    """Open an ``.aibit`` file; if it is the first shard of a model, also the others, which lie beside it.

    A URL is read by ranges, and so is a name on the hub, ``hf://owner/name[/file][@revision]``.

    Any other shard, or the bytes of one, is opened by itself. See ``File`` and ``Sharded``.
    """
    if isinstance(source, str):
        source = hub.remote(source)
    while True:
        file = File(source, verify, signed_by)
        if file.path is None or file.metadata.get("shard.index") != 1:
            return file
        root = file.root
        try:
            return Sharded(file, signed_by)
        except FormatError:
            if root_of(file.path) in (None, root):
                raise
            # The model was replaced meanwhile, and the shards of the old one are gone.


def open_local(path: Path, verify: Level = "structure", signed_by: Keys | None = None) -> Opened:
    """Open a file to map it; see ``open``. One that is named on the hub is downloaded to its cache, see ``io.hub``."""
    return open(hub.local(os.fspath(path)), verify, signed_by)


@contextlib.contextmanager
def opened(source: Path | Opened, verify: Level = "structure") -> Iterator[Opened]:
    """Open a path for a ``with`` block. A file that is open already is used as it is, and stays open."""
    if isinstance(source, Opened):
        yield source
    else:
        with open(source, verify) as file:
            yield file


def whole(opened: Opened) -> Opened:
    """Return ``opened`` unless it is only a part of a model.

    Raises:
        LoadError: it is one of several shards; the message says which file to open instead.
    """
    if isinstance(opened, File) and (count := opened.metadata.get("shard.count", 1)) > 1:
        index = opened.metadata["shard.index"]
        name = opened.path or "bytes in memory"
        first = _NUMBERS.sub(f"-00001-of-{count:05d}", name)
        what = f"shard {index} of {count} of a model, which is opened by the first, {os.path.basename(first)}"
        if opened.path and not is_url(name) and not os.path.exists(first):
            what += "; that is not there: it is written last, so if writing was cut short, write all of them again"
        raise LoadError(f"{name}: {what}")
    return opened


def _open_others(first: File, opened: list[File], signed_by: Keys | None) -> list[File]:
    """Open all shards, appending each to ``opened``, so that the caller can close them after an error."""
    path, count, roots = str(first.path), first.metadata["shard.count"], first.metadata["shard.roots"]
    numbers = _NUMBERS.search(path)
    if not numbers or (int(numbers[1]), int(numbers[2])) != (1, count):
        what = f"the first of {count} shards, which are found by their names: end of its name"
        found = numbers[0] if numbers else os.path.basename(path)
        raise FormatError(Problem("AIB-E607", what, expected=f"-00001-of-{count:05d}", found=found), path)
    for index, (name, root) in enumerate(zip(_siblings(path, count)[1:], roots, strict=True), 2):
        try:
            part = _open_other(first, index, name, root, signed_by)
        except FormatError:
            if (beside := find(name, root)) == name:
                raise
            part = _open_other(first, index, beside, root, signed_by)
        opened.append(part)
    return opened


def _open_other(first: File, index: int, name: str, root: str, signed_by: Keys | None) -> File:
    count = first.metadata["shard.count"]
    try:
        part = File(name, first.level, signed_by)
    except FormatError as error:
        if not error.code.startswith("AIB-E8"):
            raise
        what = f"shard {index} of {count} {error.problems[0].what}"
        raise FormatError(Problem("AIB-E607", what), name) from error
    place = part.metadata.get("shard.index"), part.metadata.get("shard.count")
    said = f"{place[0]} of {place[1]}"
    if part.root != root:
        says = f"shard {said}" if place[0] else "no shard"
        what = f"not the shard {index} of {count} that {os.path.basename(str(first.path))} lists (it is {says}): root"
        problem = Problem("AIB-E608", what, expected=root, found=part.root)
    elif place != (index, count):
        problem = Problem("AIB-E609", "place in the set of shards", expected=f"{index} of {count}", found=said)
    else:
        return part
    part.close()
    raise FormatError(problem, name)


def _holders(parts: tuple[File, ...]) -> dict[str, File]:
    """Map each tensor's name to its shard."""
    found: dict[str, File] = {}
    for part in parts:
        for name in part:
            if found.setdefault(name, part) is not part:
                other = os.path.basename(str(found[name].path))
                raise FormatError(Problem("AIB-E414", f"name is also used in {other}", tensor=name), part.path)
    return found


def _in_order(parts: tuple[File, ...]) -> list[str]:
    """Return all names in the model's order, after checking what the first shard says about all tensors."""
    first, names = parts[0], [name for part in parts for name in part]
    places = np.asarray(first.metadata["shard.places"], np.int64)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    if not np.array_equal(np.sort(places), np.arange(len(names))):
        what = "shard.places are not the places of all tensors, each once"
        raise FormatError(Problem("AIB-E609", what, expected=len(names), found=len(places)), first.path)
    for index, of_part in enumerate(np.split(places, ends), 1):
        if (np.diff(of_part) < 0).any():
            what = f"shard.places: the tensors of shard {index} are not in the model's order"
            raise FormatError(Problem("AIB-E609", what), first.path)
    elements = sum(validate.parameters(part.tables) for part in parts)
    if problems := list(validate.figures(first.metadata, elements, len(names))):
        raise FormatError(problems, first.path)
    return [names[i] for i in np.argsort(places)]
