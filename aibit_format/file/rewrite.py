"""Makes models from models: cuts one into shards, joins shards, changes metadata and documents.

Planes go through the writer as they are, checked against their digests as they are read. Sections of kinds that are
not known here stay behind, as they may speak of what has changed (W9). No input is ever written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..container.metadata import Value
from ..container.plan import Tensor
from ..errors import FormatError, WriteError
from ..io.mapped import Path
from . import sharded_reader, sharded_writer
from .progress import Progress
from .sharded_reader import Opened, Sharded, shard_path, whole


def split(
    source: Path,
    path: Path,
    max_shard_size: int | str,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Cut a model into shards ``path-00001-of-...``; return their paths.

    Args:
        source: a file, or the first of shards that are to be cut anew.
        path: what the shards are named after: ``m.aibit`` gives ``m-00001-of-00003.aibit`` and so on.
        max_shard_size: bytes of planes, or ``"5GB"``; only a tensor that is larger has a larger shard, its own.
        overwrite: replace files that exist. The model that they are opens until the new one does: see
            ``sharding.ShardedWriter``. If the process was killed, do the same again.
        on_progress: called with bytes done, bytes in all, and the tensor's name.

    Raises:
        FormatError: the source is not valid, or a plane or document is damaged.
        WriteError: a shard exists, or cannot be written. Nothing is left behind.
    """
    with whole(sharded_reader.open(source, "touched")) as file:
        parts = sharded_writer.cut(_tensors(file), sharded_writer.parse_size(max_shard_size))
        return _write(file, path, file.metadata, dict(file.documents), parts, overwrite, on_progress)


def merge(first: Path, path: Path, *, overwrite: bool = False, on_progress: Progress | None = None) -> list[str]:
    """Join a model's shards into one file; return its path in a list. ``split`` makes the same shards of it again.

    Args:
        first: the first shard; the others are found beside it.
        path: the file to write.
        overwrite: replace it if it exists.
        on_progress: called with bytes done, bytes in all, and the tensor's name.

    Raises:
        FormatError: a shard is missing, another one's, or damaged; its name is in the message.
        WriteError: ``first`` is no shard; the output exists, or cannot be written.
    """
    with whole(sharded_reader.open(first, "touched")) as file:
        if not isinstance(file, Sharded):
            raise WriteError(f"{os.fspath(first)}: is one file already, not the first of several shards")
        return _write(file, path, file.metadata, dict(file.documents), None, overwrite, on_progress)


def edit(
    source: Path,
    path: Path,
    *,
    metadata: Mapping[str, Value] | None = None,
    unset: Iterable[str] = (),
    documents: Mapping[str, bytes] | None = None,
    remove: Iterable[str] = (),
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write a copy of a model with other metadata or documents; return its paths.

    A copy of shards is cut where they are.

    Args:
        source: a file, or the first of a model's shards.
        path: the file to write, or what shards are named after.
        metadata: values to set or replace, by key.
        unset: keys to leave out.
        documents: contents to set or replace, by name.
        remove: names of documents to leave out.
        overwrite: replace files that exist.
        on_progress: called with bytes done, bytes in all, and the tensor's name.

    Raises:
        WriteError: a key or document to leave out is not there, or the outcome would break a rule.
        FormatError: the source is not valid.
    """
    with whole(sharded_reader.open(source, "touched")) as file:
        values, texts = dict(file.metadata), dict[str, Any](file.documents)
        for table, names, what in ((values, unset, "metadata key"), (texts, remove, "document")):
            for name in names:
                if name not in table:
                    raise WriteError(f"{os.fspath(source)}: has no {what} {name!r}")
                del table[name]
        values |= metadata or {}
        texts |= documents or {}
        if reserved := [key for key in values if key.startswith("shard.")]:
            raise WriteError(f"metadata key {reserved[0]!r} says how a model is cut; it is set by split and merge")
        parts = None
        if isinstance(file, Sharded):
            place = {name: i for i, name in enumerate(file)}
            parts = [[place[name] for name in part] for part in file.parts]
        return _write(file, path, values, texts, parts, overwrite, on_progress)


def _tensors(file: Opened) -> list[Tensor]:
    infos = (file.info(name) for name in file)
    return [Tensor(i.name, i.shape, i.dtype, i.scheme, i.alias_of, i.transposed) for i in infos]


def _write(
    file: Opened,
    path: Path,
    metadata: Mapping[str, Value],
    texts: Mapping[str, Any],
    parts: sharded_writer.Parts | None,
    overwrite: bool,
    on_progress: Progress | None,
) -> list[str]:
    """Write the file's tensors with these metadata and documents, cut into ``parts``; returns the paths."""
    tensors, sizes = _tensors(file), {name: len(text) for name, text in texts.items()}
    alignment = file.parts[0].tables.alignment
    paths = [os.fspath(path)] if parts is None else [shard_path(path, i + 1, len(parts)) for i in range(len(parts))]
    _spare_inputs(file, paths)
    try:
        out = sharded_writer.writer(path, tensors, metadata, sizes, parts, alignment, overwrite=overwrite)
    except FormatError as error:  # of what is to be written, not of what was read
        raise WriteError(f"{paths[0]}: would not be valid: {error.problems[0]}") from error
    done, total = 0, sum(file.info(tensor.name).nbytes for tensor in tensors if tensor.alias_of is None)
    with out:
        for name, text in texts.items():
            try:
                out.write_document(name, bytes(text))
            except FormatError as error:
                raise WriteError(f"{paths[0]}: document {name!r}: {error.problems[0]}") from error
        for tensor in tensors:
            if tensor.alias_of is None:
                out.write(tensor.name, file.planes(tensor.name))
                done += file.info(tensor.name).nbytes
                if on_progress is not None:
                    on_progress(done, total, tensor.name)
        return list(sharded_writer.commit(out, metadata).paths)


def _spare_inputs(file: Opened, paths: Iterable[str]) -> None:
    """Raise WriteError if a file to be written is one that is being read, under whatever name."""
    inputs = [part.path for part in file.parts if part.path and os.path.exists(part.path)]
    for target in filter(os.path.exists, paths):
        if any(os.path.samefile(target, path) for path in inputs):
            raise WriteError(f"{target}: is what is being read, and is not written over; say another name")
