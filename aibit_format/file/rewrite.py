"""Makes models from models: cuts one into shards, joins shards, changes metadata and documents.

Planes are written unchanged: as extents that both files share, where the file system can, else as copies. ``split`` and
``merge`` read them, once, and check them against their digests, as the new files have other digests. ``edit`` does not
read them, and takes their digests over: what is damaged in the source is damaged in the copy, and found there by the
same digests (W13.1). Sections of unknown kinds are left out, as they may describe what has changed (W9). No input is
ever written to.
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
from .progress import Progress, counting
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
        source: a file, or the first of several shards, to cut it differently.
        path: from which shards get their names: ``m.aibit`` gives ``m-00001-of-00003.aibit`` and so on.
        max_shard_size: most bytes of planes in a shard, or ``"5GB"``; a larger tensor gets a shard of its own.
        overwrite: replace files that exist. Their model can be opened until the new one can: see
            ``sharded_writer.ShardedWriter``. If the process is killed, run it again.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        FormatError: the source is not valid, or a plane or document is damaged.
        WriteError: a shard exists, or cannot be written. Nothing is left behind.
    """
    with whole(sharded_reader.open(source, "touched")) as file:
        parts = sharded_writer.cut(_tensors(file), sharded_writer.parse_size(max_shard_size))
        return _write(file, path, file.metadata, dict(file.documents), parts, overwrite, on_progress)


def merge(first: Path, path: Path, *, overwrite: bool = False, on_progress: Progress | None = None) -> list[str]:
    """Join a model's shards into one file, the inverse of ``split``; return its path in a list.

    Args:
        first: the first shard; the others are found beside it.
        path: the file to write.
        overwrite: replace an existing file.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        FormatError: a shard is missing, belongs to another model, or is damaged; the message names it.
        WriteError: ``first`` is not a shard; the output exists, or cannot be written.
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

    A sharded model keeps its tensors in the same shards. The front matter keeps its length, as long as the slack in it
    is enough, so that nothing after it moves. Planes are neither read nor checked, but keep their digests: verify the
    source or the copy to know whether they are whole.

    Args:
        source: a file, or the first of a model's shards.
        path: the file to write, or the path from which the names of the shards are derived.
        metadata: values to set or replace, by key.
        unset: keys to leave out.
        documents: contents to set or replace, by name.
        remove: names of documents to leave out.
        overwrite: replace files that exist.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        WriteError: a key or document to leave out does not exist, or the result would break a rule.
        FormatError: the source is not valid, or a document is damaged.
    """
    with whole(sharded_reader.open(source)) as file:
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
        return _write(file, path, values, texts, parts, overwrite, on_progress, edited=True)


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
    edited: bool = False,
) -> list[str]:
    """Write the file's tensors with these metadata and documents, cut into ``parts``; returns the paths.

    With ``edited``, the parts are those of the file: so are the digests of their planes, and, where their slack is
    enough, the lengths of their front matters.
    """
    tensors, sizes = _tensors(file), {name: len(text) for name, text in texts.items()}
    alignment = file.parts[0].tables.alignment
    paths = [os.fspath(path)] if parts is None else [shard_path(path, i + 1, len(parts)) for i in range(len(parts))]
    spare_inputs(file, paths)
    try:
        out = sharded_writer.writer(
            path, tensors, metadata, sizes, parts, alignment, overwrite=overwrite, source=file,
            front_matter_lengths=[part.tables.front_matter_length for part in file.parts] if edited else (),
        )  # fmt: skip
    except FormatError as error:  # about the output, not the input
        raise WriteError(f"{paths[0]}: would not be valid: {error.problems[0]}") from error
    stored = [tensor.name for tensor in tensors if tensor.alias_of is None]
    finished = counting({name: file.info(name).nbytes for name in stored}, on_progress)
    with out:
        for name, text in texts.items():
            try:
                out.write_document(name, bytes(text))
            except FormatError as error:
                raise WriteError(f"{paths[0]}: document {name!r}: {error.problems[0]}") from error
        if edited:
            out.take_data(finished)
        else:
            for name in stored:
                out.take(name)
                finished(name)
        return list(sharded_writer.commit(out, metadata).paths)


def spare_inputs(file: Opened, paths: Iterable[str]) -> None:
    """Raise WriteError if a file to be written is also being read, under whatever name."""
    inputs = [part.path for part in file.parts if part.path and os.path.exists(part.path)]
    for target in filter(os.path.exists, paths):
        if any(os.path.samefile(target, path) for path in inputs):
            raise WriteError(f"{target}: is what is being read, and cannot be overwritten; choose another name")
