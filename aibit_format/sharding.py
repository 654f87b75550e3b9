"""Writing a model as shards: which tensor goes into which file, and several files that appear as one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from . import draft, layout
from .draft import Tensor
from .errors import WriteError
from .manifest import FileInfo
from .metadata import Value
from .shards import shard_path
from .storage import Path
from .writer import Writer

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")}
_EMPTY_ROOT = "0" * 32  # in the place of a digest that is not known yet

Parts = Sequence[Sequence[int]]  # for each shard, the places in the model of its tensors


def parse_size(text: int | str) -> int:
    """Bytes: ``"5GB"`` is 5 * 10^9, ``"5GiB"`` 5 * 2^30.

    Raises:
        ValueError: it is no size, or nothing.
    """
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]?I?B)?", str(text).upper())
    unit = _UNITS.get(found[2] or "") if found else None
    if found is None or unit is None or not int(found[1]):
        raise ValueError(f"{text!r} is not a size such as 5GB, 500MB or 4GiB")
    return int(found[1]) * unit


def cut(tensors: Sequence[Tensor], limit: int) -> list[list[int]]:
    """The places of the tensors of each shard: in order, and a new shard where the next would take one over ``limit``.

    ``limit`` is in bytes of planes; a larger tensor has a shard to itself. An alias goes where its target is.
    """
    parts: list[list[int]] = [[]]
    where: dict[str, list[int]] = {}
    size = 0
    for place, tensor in enumerate(tensors):
        if tensor.alias_of is not None:
            where[tensor.alias_of].append(place)
            continue
        length = sum(plane.nbytes for plane in tensor.scheme.planes(tensor.shape, tensor.dtype))
        if size and size + length > limit:
            parts.append([])
            size = 0
        parts[-1].append(place)
        where[tensor.name] = parts[-1]
        size += length
    return parts


def plan(
    tensors: Sequence[Tensor],
    metadata: Mapping[str, Value],
    document_sizes: Mapping[str, int],
    parts: Parts,
    alignment: int = layout.DEFAULT_ALIGNMENT,
) -> list[FileInfo]:
    """The shards that these make, each complete but for its digests; see ``draft.plan``."""
    count = len(parts)
    if count > layout.MAX_SHARDS:
        raise WriteError(f"{count} shards, at most {layout.MAX_SHARDS}: make them larger")
    return [
        draft.plan(
            [tensors[place] for place in part],
            {**metadata, **_of_set(parts)} if index == 1 else {"shard.index": index, "shard.count": count},
            document_sizes if index == 1 else {},
            alignment,
        )
        for index, part in enumerate(parts, 1)
    ]


def _of_set(parts: Parts, roots: Iterable[bytes] = ()) -> dict[str, Value]:
    """What the first shard says of the set."""
    return {
        "shard.index": 1,
        "shard.count": len(parts),
        "shard.places": np.array([place for part in parts for place in part], np.int64),
        "shard.roots": [root.hex() for root in roots] or [_EMPTY_ROOT] * (len(parts) - 1),
    }


class ShardedWriter:
    """Writes the shards that ``plan`` made of ``parts``. Use it as a context: without ``commit`` nothing is left.

    They get their names when all of them are on the disk, the first one last: without it, the others are no model.

    Args:
        path: of the model; ``shard_path`` says what the files are called.
        plans, parts: from ``plan`` and ``cut``.
        overwrite: replace files that exist.

    ``write`` may be called by several threads, as that of ``Writer``.
    """

    def __init__(self, path: Path, plans: Sequence[FileInfo], parts: Parts, *, overwrite: bool = False) -> None:
        self.path, self.parts = os.fspath(path), parts
        self._published: list[str] = []
        self._writers: dict[int, Writer] = {}
        with contextlib.ExitStack() as stack:
            for i, info in enumerate(plans):
                name = shard_path(path, i + 1, len(plans))
                self._writers[i] = stack.enter_context(Writer(name, info, overwrite=overwrite))
            self._stack = stack.pop_all()
        self._holder = {name: writer for writer in self._writers.values() for name in writer.info.names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is not None:
            for name in reversed(self._published):  # the first shard went last, and goes first
                with contextlib.suppress(OSError):
                    os.unlink(name)
        self._stack.close()

    def write_document(self, name: str, data: bytes) -> None:
        """See ``Writer.write_document``."""
        self._writers[0].write_document(name, data)

    def write(self, name: str, planes: Mapping[str, np.ndarray]) -> None:
        """See ``Writer.write``."""
        self._holder[name].write(name, planes)

    def commit(self, metadata: Mapping[str, Value]) -> list[FileInfo]:
        """Finish all shards and give them their names; see ``Writer.commit``."""
        others = [writer.finish() for i, writer in self._writers.items() if i]
        first = self._writers[0].finish({**metadata, **_of_set(self.parts, [info.root() for info in others])})
        for writer in reversed(self._writers.values()):
            writer.publish()
            self._published.append(writer.path)
        return [first, *others]
