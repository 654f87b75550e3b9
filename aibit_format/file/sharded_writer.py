"""Writing a model as shards: which tensor goes into which file, and several files that appear as one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
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
from .sharded_reader import PREVIOUS, find, listed, root_of, shard_path
from .writer import Writer

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")}

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
) -> list[FileInfo]:
    """The shards that these make, each complete but for its digests; see ``container.plan``."""
    count = len(parts)
    if count > layout.MAX_SHARDS:
        raise WriteError(f"{count} shards, at most {layout.MAX_SHARDS}: make them larger")
    return [
        plan(
            [tensors[place] for place in part],
            {**metadata, **_of_set(parts)} if index == 1 else {"shard.index": index, "shard.count": count},
            document_sizes if index == 1 else {},
            alignment,
        )
        for index, part in enumerate(parts, 1)
    ]


def _of_set(parts: Parts, roots: np.ndarray | None = None) -> dict[str, Value]:
    """What the first shard says of the set; ``roots`` u8 [shards - 1, 16], of the others."""
    if roots is None:
        roots = np.zeros((len(parts) - 1, 16), np.uint8)  # they are not known yet
    return {
        "shard.index": 1,
        "shard.count": len(parts),
        "shard.places": np.array([place for part in parts for place in part], np.int64),
        "shard.roots": [root.tobytes().hex() for root in roots],
    }


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the files, the first shard first, their bytes in all, and the root that stands for them."""

    paths: tuple[str, ...]
    nbytes: int
    root: str


class ShardedWriter:
    """Writes the shards that ``plan_shards`` made of ``parts``. Without ``commit`` nothing is left.

    They get their names when all of them are on the disk, the first one last: it lists the others, so its name says in
    one step which model is there. A shard that is replaced lies beside its name until then, with ``.previous`` after
    it, where ``shards.open`` looks for it. So whenever the process is killed, there is either no model yet, if there
    was none, or the first shard opens a whole one: the older, until the new first shard has its name, and the new one
    after that. What was left over goes when the same shards are written again with ``overwrite``.

    Args:
        path: of the model; ``shard_path`` says what the files are called.
        plans, parts: from ``plan_shards`` and ``cut``.
        overwrite: replace files that exist.
        ranks: processes of which each makes its shards; all of them make a writer, and ``commit`` together.

    ``write`` may be called by several threads, as that of ``Writer``.
    """

    def __init__(
        self, path: Path, plans: Sequence[FileInfo], parts: Parts, *, overwrite: bool = False, ranks: Ranks = ALONE
    ) -> None:
        ranks.same(checksums.root(*(info.front_matter() for info in plans if ranks.count > 1)))
        self.parts, self.ranks = parts, ranks
        self.paths = tuple(shard_path(path, i + 1, len(plans)) for i in range(len(plans)))
        self._nbytes = sum(info.file_size for info in plans)
        self._overwrite = overwrite
        self._listed: list[str | None] = []  # roots of the shards of the model that is to be replaced
        self._kept: set[int] = set()  # shards whose older ones lie beside them
        self._writers: dict[int, Writer] = {}
        mine = list(ranks.mine(len(plans)))
        folder, size = os.path.dirname(self.paths[0]) or ".", sum(plans[i].file_size for i in mine)
        try:
            need_room(folder, size)  # for all of them: each by itself would find the room that others will take
        except OSError as error:
            raise WriteError(f"{folder}: cannot write {size} bytes: {error.strerror}") from error
        with contextlib.ExitStack() as stack:
            for i in mine:
                self._writers[i] = stack.enter_context(Writer(self.paths[i], plans[i], overwrite=overwrite))
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
            # Two models written over one another at once would end as some shards of each.
            self._stack.enter_context(atomic.alone_in(os.path.dirname(self.paths[0]) or "."))
        roots = self.ranks.share(roots)
        self._listed = listed(self.paths[0], len(self.paths))  # still the older one: no process is past ``agree``
        for i, writer in self._writers.items():
            if i:
                self._keep(i)
                writer.publish()
        self.ranks.agree()
        if first is not None:
            first.publish()
        self.ranks.agree()
        for i in self._kept:
            with contextlib.suppress(OSError):  # it is in nobody's way
                os.unlink(self.paths[i] + PREVIOUS)
        return Written(self.paths, self._nbytes, roots[0].tobytes().hex())

    def _keep(self, i: int) -> None:
        """Put the shard that is to be replaced beside its name, unless a process that was killed has done so."""
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
        """After a failure, leave the shards that the first one lists, whichever first one that is, and no others."""
        now = listed(self.paths[0], len(self.paths))
        for i in self._kept | {i for i, writer in self._writers.items() if i and writer.published}:
            name = self.paths[i]
            with contextlib.suppress(OSError):  # the others still can be put in order, and readers find this one
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
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> Writer | ShardedWriter:
    """What writes a model: as the shards that ``parts`` says, or as one file if there are none."""
    if parts is None:
        return Writer(path, plan(tensors, metadata, document_sizes, alignment), overwrite=overwrite)
    plans = plan_shards(tensors, metadata, document_sizes, parts, alignment)
    return ShardedWriter(path, plans, parts, overwrite=overwrite, ranks=ranks)


def commit(out: Writer | ShardedWriter, metadata: Mapping[str, Value]) -> Written:
    """Finish what ``writer`` has begun."""
    if isinstance(out, ShardedWriter):
        return out.commit(metadata)
    info = out.commit(metadata)
    return Written((out.path,), info.file_size, out.root.hex())
