"""Writes a model as shards: assigns tensors to files, and makes the files appear together."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from ..container import checksums, layout
from ..container.metadata import Value
from ..container.plan import Tensor, plan
from ..container.tables import FileInfo
from ..errors import WriteError
from ..io import atomic
from ..io.mapped import Path
from ..io.preallocate import need_room
from .ranks import ALONE, Ranks
from .sharded_reader import PREVIOUS, Opened, find, listed, root_of, shard_path
from .writer import Writer

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")}

Parts = Sequence[Sequence[int]]  # for each shard, the positions of its tensors in the model


def parse_size(text: int | str) -> int:
    """Parse a size in bytes: ``"5GB"`` is 5 * 10^9, ``"5GiB"`` 5 * 2^30.

    Raises:
        ValueError: it is not a size, or zero.
    """
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]?I?B)?", str(text).upper())
    unit = _UNITS.get(found[2] or "") if found else None
    if found is None or unit is None or not int(found[1]):
        raise ValueError(f"{text!r} is not a size such as 5GB, 500MB or 4GiB")
    return int(found[1]) * unit


def cut(tensors: Sequence[Tensor], limit: int) -> list[list[int]]:
    """Assign tensors to shards in order, starting a new shard when the next tensor would exceed ``limit``.

    ``limit`` is in bytes of planes; a larger tensor gets a shard of its own. An alias goes where its target is.
    """
    parts: list[list[int]] = [[]]
    where: dict[str, list[int]] = {}
    size = 0
    for place, tensor in enumerate(tensors):
        if tensor.alias_of is not None:
            where[tensor.alias_of].append(place)
            continue
        if size and size + tensor.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(place)
        where[tensor.name] = parts[-1]
        size += tensor.nbytes
    return parts


def plan_shards(
    tensors: Sequence[Tensor],
    metadata: Mapping[str, Value],
    document_sizes: Mapping[str, int],
    parts: Parts,
    alignment: int = layout.DEFAULT_ALIGNMENT,
    front_matter_lengths: Sequence[int] = (),
) -> list[FileInfo]:
    """Plan the shards of a model, each complete except for its digests; see ``writer`` and ``container/plan.py``."""
    count = len(parts)
    if count > layout.MAX_SHARDS:
        raise WriteError(f"{count} shards, at most {layout.MAX_SHARDS}: make them larger")
    return [
        plan(
            [tensors[place] for place in part],
            {**metadata, **_of_set(parts)} if index == 1 else {"shard.index": index, "shard.count": count},
            document_sizes if index == 1 else {},
            alignment,
            length,
        )
        for index, (part, length) in enumerate(zip(parts, front_matter_lengths or [0] * count, strict=True), 1)
    ]


def _of_set(parts: Parts, roots: np.ndarray | None = None) -> dict[str, Value]:
    """Make the first shard's metadata about the set; ``roots`` u8 [shards - 1, 16] are those of the others."""
    if roots is None:
        roots = np.zeros((len(parts) - 1, 16), np.uint8)  # not known yet
    return {
        "shard.index": 1,
        "shard.count": len(parts),
        "shard.places": np.array([place for part in parts for place in part], np.int64),
        "shard.roots": [root.tobytes().hex() for root in roots],
    }


@dataclass(frozen=True, slots=True)
class Written:
    """List what was written: the files, the first shard first, their total bytes, and the root that covers them."""

    paths: tuple[str, ...]
    nbytes: int
    root: str


class ShardedWriter:
    """Write the shards that ``plan_shards`` made of ``parts``. Without ``commit`` nothing is left.

    They get their names once all of them are on the disk, the first one last: it lists the others, so giving it its
    name switches models in one step. A shard being replaced lies beside its name until then, with ``.previous``
    appended, where ``sharded_reader.open`` looks for it. So whenever the process is killed, there is either no model,
    if there was none before, or the first shard opens a whole one: the old one until the new first shard has its name,
    then the new one. Leftovers are removed when the same shards are written again with ``overwrite``.

    Args:
        path: of the model; ``shard_path`` derives the names of the files.
        plans, parts: from ``plan_shards`` and ``cut``.
        overwrite: replace files that exist.
        ranks: processes that each write their own shards; all of them create a writer and call ``commit``.
        source: an open model to take planes from; see ``Writer``.

    ``write`` may be called from several threads, like that of ``Writer``.
    """

    def __init__(
        self,
        path: Path,
        plans: Sequence[FileInfo],
        parts: Parts,
        *,
        overwrite: bool = False,
        ranks: Ranks = ALONE,
        source: Opened | None = None,
    ) -> None:
        ranks.same(checksums.root(*(info.front_matter() for info in plans if ranks.count > 1)))
        self.parts, self.ranks = parts, ranks
        self.paths = tuple(shard_path(path, i + 1, len(plans)) for i in range(len(plans)))
        self._nbytes = sum(info.file_size for info in plans)
        self._overwrite = overwrite
        self._listed: list[str | None] = []  # roots of the shards of the model being replaced
        self._kept: set[int] = set()  # shards whose old versions lie beside them
        self._writers: dict[int, Writer] = {}
        mine = list(ranks.mine(len(plans)))
        folder, size = os.path.dirname(self.paths[0]) or ".", sum(plans[i].file_size for i in mine)
        try:
            need_room(folder, size)  # for all shards: each by itself would count room that others will take
        except OSError as error:
            raise WriteError(f"{folder}: cannot write {size} bytes: {error.strerror}") from error
        with contextlib.ExitStack() as stack:
            for i in mine:
                out = Writer(self.paths[i], plans[i], overwrite=overwrite, source=source)
                self._writers[i] = stack.enter_context(out)
            self._stack = stack.pop_all()
        self._holder = {name: writer for writer in self._writers.values() for name in writer.info.names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is not None:
            self._undo()
        self._stack.close()

    def write_document(self, name: str, data: bytes) -> None:
        """See ``Writer.write_document``; for the process that has the first shard."""
        self._writers[0].write_document(name, data)

    def write(self, name: str, planes: Mapping[str, np.ndarray]) -> None:
        """See ``Writer.write``; for a tensor of one of this process's shards."""
        self._holder[name].write(name, planes)

    def written(self, name: str, role: str) -> np.ndarray | None:
        """See ``Writer.written``; of a tensor of one of this process's shards."""
        return self._holder[name].written(name, role)

    def take(self, name: str) -> None:
        """See ``Writer.take``; for a tensor of one of this process's shards."""
        self._holder[name].take(name)

    def take_data(self, finished: Callable[[str], None] = lambda name: None) -> None:
        """See ``Writer.take_data``; for all of this process's shards."""
        for writer in self._writers.values():
            writer.take_data(finished)

    def chunks(self, name: str) -> list[range]:
        """See ``Writer.chunks``."""
        return self._holder[name].chunks(name)

    def write_rows(self, name: str, rows: range, planes: Mapping[str, np.ndarray], chunk: range) -> None:
        """See ``Writer.write_rows``."""
        self._holder[name].write_rows(name, rows, planes, chunk)

    def commit(self, metadata: Mapping[str, Value]) -> Written:
        """Finish all shards and give them their names; see ``Writer.commit``."""
        roots = np.zeros((len(self.parts), 16), np.uint8)
        for i, writer in self._writers.items():
            if i:
                writer.finish()
                roots[i] = np.frombuffer(writer.root, np.uint8)
        roots = self.ranks.share(roots)
        first = self._writers.get(0)
        if first is not None:
            first.finish({**metadata, **_of_set(self.parts, roots[1:])})
            roots[0] = np.frombuffer(first.root, np.uint8)
            # Two models written over one another at the same time would leave a mixture of their shards.
            self._stack.enter_context(atomic.alone_in(os.path.dirname(self.paths[0]) or "."))
        roots = self.ranks.share(roots)
        self._listed = listed(self.paths[0], len(self.paths))  # still the old one: no process is past ``agree``
        for i, writer in self._writers.items():
            if i:
                self._keep(i)
                writer.publish()
        self.ranks.agree()
        if first is not None:
            first.publish()
        self.ranks.agree()
        for i in self._kept:
            with contextlib.suppress(OSError):  # a leftover does no harm
                os.unlink(self.paths[i] + PREVIOUS)
        return Written(self.paths, self._nbytes, roots[0].tobytes().hex())

    def _keep(self, i: int) -> None:
        """Move the shard being replaced beside its name, unless a killed process has already done so."""
        name = self.paths[i]
        if not self._overwrite:
            return
        if find(name, self._listed[i]) == name:
            if not os.path.isfile(name):
                return  # there is none
            try:
                os.replace(name, name + PREVIOUS)
            except OSError as error:
                raise WriteError(f"{name}: cannot be renamed: {error.strerror}") from error
        self._kept.add(i)

    def _undo(self) -> None:
        """After a failure, keep the shards that the current first one lists, old or new, and no others."""
        now = listed(self.paths[0], len(self.paths))
        for i in self._kept | {i for i, writer in self._writers.items() if i and writer.published}:
            name = self.paths[i]
            with contextlib.suppress(OSError):  # the others can still be restored, and readers find this one
                if now[i] is not None and root_of(name) == now[i]:
                    if i in self._kept:
                        os.unlink(name + PREVIOUS)
                elif i in self._kept:
                    os.replace(name + PREVIOUS, name)
                else:
                    os.unlink(name)


def writer(
    path: Path,
    tensors: Sequence[Tensor],
    metadata: Mapping[str, Value],
    document_sizes: Mapping[str, int],
    parts: Parts | None,
    alignment: int = layout.DEFAULT_ALIGNMENT,
    *,
    front_matter_lengths: Sequence[int] = (),
    overwrite: bool = False,
    ranks: Ranks = ALONE,
    source: Opened | None = None,
) -> Writer | ShardedWriter:
    """Create the writer of a model: in the shards that ``parts`` lists, or in one file if it is ``None``.

    Every file has slack; where ``front_matter_lengths`` are given, one for each file, it is what fills them up.
    """
    if parts is None:
        (length,) = front_matter_lengths or (0,)
        info = plan(tensors, metadata, document_sizes, alignment, length)
        return Writer(path, info, overwrite=overwrite, source=source)
    plans = plan_shards(tensors, metadata, document_sizes, parts, alignment, front_matter_lengths)
    return ShardedWriter(path, plans, parts, overwrite=overwrite, ranks=ranks, source=source)


def commit(out: Writer | ShardedWriter, metadata: Mapping[str, Value]) -> Written:
    """Finish the model that ``writer`` has begun."""
    if isinstance(out, ShardedWriter):
        return out.commit(metadata)
    info = out.commit(metadata)
    return Written((out.path,), info.file_size, out.root.hex())
