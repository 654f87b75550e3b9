"""Converts a source to an ``.aibit`` file, or to shards, without holding the whole model in memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from .._version import __version__
from ..container import documents
from ..container.metadata import Value
from ..errors import AibitError, MissingPackageError, RecipeError, SourceError, WriteError
from ..file import sharded_writer
from ..file.progress import Progress
from ..file.ranks import ALONE, Ranks, of_torch
from ..formats.aibit import Aibit
from ..formats.sources import Source, open_source
from ..hf.config import CONFIG_DTYPES, stated_dtype
from ..hf.limits import Limits
from ..hf.meta_model import build_meta_model
from ..io.mapped import Path
from ..native.cores import usable_cores
from . import recipe
from .conversion import Assignment, Conversion, assign, assign_alone
from .error import EncodingError
from .pipeline import Pipeline
from .recipe import Recipe
from .unquantized import unquantized

_LIBRARIES = ("numpy", "torch", "transformers")  # whose versions can change the bytes of the output


@dataclass(frozen=True, slots=True)
class TensorReport:
    """Report how one tensor was stored. ``error`` is ``None`` if that was exact, or if its planes were ``kept``."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    original_bytes: int
    quantized_bytes: int
    error: EncodingError | None
    alias_of: str | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Report what a conversion did. ``path`` is the path to open the model with: the first if ``files`` are shards."""

    path: str
    files: tuple[str, ...]
    tensors: tuple[TensorReport, ...]
    original_bytes: int  # of the weights in the source
    quantized_bytes: int  # of all planes in the file
    file_bytes: int
    seconds: float
    root: str
    unused: tuple[str, ...]
    dropped_keys: tuple[str, ...]
    unquantized: Mapping[str, int]  # why weights stay as they were -> their bytes; empty if nothing is quantized

    @property
    def compression_ratio(self) -> float:
        """Return the ratio of the original to the quantized bytes of the weights."""
        return self.original_bytes / self.quantized_bytes if self.quantized_bytes else 1.0

    @property
    def memory_saved_bytes(self) -> int:
        """Return how many bytes fewer the quantized weights take."""
        return self.original_bytes - self.quantized_bytes


def prepare(source: Any, wanted: Recipe, architecture: str | None = None, tokenizer: Any = None) -> Conversion:
    """Decide what ``convert`` will do, by reading only headers and ``config.json``.

    An ``.aibit`` file describes its model itself. Without transformers, it can still be converted if the recipe keeps
    all tensors that its rules do not name.

    Args:
        source, architecture, tokenizer: as for ``convert``.
        wanted: the recipe.

    Raises:
        MissingPackageError: transformers, which knows which tensors are a model's weights, is not installed.
        RecipeError: the recipe has a scheme for the weights of a model, and the source is no model.
        SourceError: the model does not use a tensor, and no ``architecture`` says that this is meant.
        SchemeError, LoadError: as for ``convert``.
    """
    opened = open_source(source, tokenizer)
    states = tuple(file.state for file in opened.files)
    if opened.no_model:
        if not wanted.undecided and wanted.scheme is not None:
            raise RecipeError(
                f"{opened.path}: nothing says which tensors {wanted.scheme.text} is for, as there is no model: "
                f"{opened.no_model}; name them (--tensor 'REGEX={wanted.scheme.text}'), or say --scheme keep"
            )
        return replace(assign_alone(opened, wanted.decided(quantized=True)), states=states)
    wanted = wanted.decided(any(tensor.scheme for tensor in opened.tensors.values()))
    if "config.json" not in opened.documents:
        raise SourceError(f"{opened.path}: no config.json")
    config = documents.parse_json("config.json", opened.documents["config.json"], constants=True)
    dtype = None if stated_dtype(config) else _dtype_of(opened)
    limits = Limits.of(math.prod(tensor.shape) for tensor in opened.tensors.values())
    stated = config if dtype is None else {**config, "dtype": dtype}
    try:
        model = build_meta_model(stated, limits, architecture or opened.architecture, opened.tensors)
    except MissingPackageError as error:
        if not isinstance(opened, Aibit):
            raise
        if wanted.scheme is not None or architecture:
            what = "only transformers knows to which weights a scheme applies; give --scheme keep, or install it"
            raise MissingPackageError(f"{opened.path}: {what}: {error}") from error
        return replace(assign_alone(opened, wanted, opened.about), states=states)
    assigned = assign(opened, model, wanted, partial=architecture is not None)
    return replace(assigned, states=states, dtype=dtype, ignored=model.dropped_keys)


def _dtype_of(source: Source) -> str | None:
    """Return the dtype of a source's first floating-point tensor, which transformers takes for a model's by default."""
    names = {name: key for key, name in CONFIG_DTYPES.items()}
    found = (names.get(tensor.dtype) for tensor in source.tensors.values() if tensor.scheme is None)
    return next(filter(None, found), None)


def convert(
    source: Any,
    path: Path,
    scheme: str | None = None,
    tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    architecture: str | None = None,
    tokenizer: Any = None,
    recipe_file: Path | None = None,
    jobs: int | None = None,
    max_shard_size: int | str | None = None,
    distributed: bool = False,
) -> Report:
    """Convert ``source`` to the ``.aibit`` file ``path``, or to shards with names derived from it.

    Args:
        source: a path (see ``formats.sources`` for the formats), an open ``Source``, or a transformers model.
        path: the file to write.
        scheme: of the Linear weights; ``"keep"`` keeps quantized ones unchanged. By default ``"keep"`` for a source
            that is quantized, otherwise ``"int8"``.
        tensors: regular expression -> scheme, for tensors in whose name it is found; the last match wins.
        overwrite: replace ``path``, or its shards, if they exist. The old model can be opened until the new one can.
        on_progress: called with bytes done, total bytes, and the tensor's name.
        architecture: transformers class, if the config names none or another is wanted. Tensors that this class does
            not use are left out; without it they are an error.
        tokenizer: of a model that is in memory.
        recipe_file: TOML with ``scheme`` and a table ``[tensors]``, kept in the output as ``recipe.toml``. The argument
            ``scheme`` replaces its scheme, and ``tensors`` are added after its rules.
        jobs: threads; as many as there are cores to use by default. The result does not depend on it.
        max_shard_size: write shards of at most so many bytes of planes, a number or a size such as ``"5GB"``: the same
            shards into which ``rewrite.split`` cuts one file. ``m.aibit`` gives ``m-00001-of-00003.aibit`` and so on.
        distributed: this is one of several processes of torch.distributed, which all call this with the same arguments
            on the same file system. Each writes some of the shards and reads only their tensors. The result does not
            depend on the number of processes.

    Raises:
        SourceError, RecipeError, SchemeError, WriteError, LoadError: the message names the file and the tensor. No
            files are left behind. With ``distributed``, all processes raise if one does.
    """
    together = of_torch() if distributed else ALONE
    with together.together():
        conversion = prepare(source, Recipe.of(scheme, tensors, recipe_file), architecture, tokenizer)
        return run(conversion, path, overwrite, on_progress, jobs, max_shard_size, together)


def run(
    conversion: Conversion,
    path: Path,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    jobs: int | None = None,
    max_shard_size: int | str | None = None,
    ranks: Ranks = ALONE,
) -> Report:
    """Convert as ``conversion`` describes; for the other arguments see ``convert``.

    Args:
        ranks: the processes that do it together; several of them need ``max_shard_size``.
    """
    started = time.perf_counter()
    texts, dropped = _documents(conversion)
    tensors, files = [assignment.tensor for assignment in conversion.tensors], conversion.source.files
    inexact = [
        i
        for i, assignment in enumerate(conversion.tensors)
        if assignment.inexact and assignment.tensor.alias_of is None
    ]
    column = {i: place for place, i in enumerate(inexact)}
    figures = np.zeros((len(inexact), 3))
    parts, owners = None, np.zeros(len(tensors), np.int64)
    if max_shard_size is not None:
        parts = sharded_writer.cut(tensors, sharded_writer.parse_size(max_shard_size))
        for i, part in enumerate(parts):
            owners[part] = i % ranks.count
    elif ranks.count > 1:
        raise WriteError(f"{os.fspath(path)}: {ranks.count} processes write shards, not one file: say max_shard_size")
    metadata = _metadata(conversion, dropped, inexact, figures, [" " * 32] * len(files))
    sizes = {name: len(text) for name, text in texts.items()}
    mine = np.flatnonzero(owners == ranks.rank).tolist()
    done, total = 0, sum(conversion.tensors[i].source_bytes for i in mine)
    with (
        sharded_writer.writer(path, tensors, metadata, sizes, parts, overwrite=overwrite, ranks=ranks) as out,
        Pipeline(conversion, mine, ranks.mine(len(files)), out, jobs or usable_cores()) as pipeline,
    ):
        for name, text in texts.items() if ranks.rank == 0 else ():
            out.write_document(name, text)
        for i, error in pipeline.run():
            if error is not None:
                figures[column[i]] = error.relative_rms, error.largest, error.signal_to_noise_db
            done += conversion.tensors[i].source_bytes
            if on_progress is not None:
                on_progress(done, total, tensors[i].name)
        _check_unchanged(conversion)
        found = np.zeros((len(files), 16), np.uint8)
        for i, digits in pipeline.digests.items():
            found[i] = np.frombuffer(bytes.fromhex(digits), np.uint8)
        figures, found = ranks.share(figures, owners[inexact]), ranks.share(found)
        digests = [row.tobytes().hex() for row in found]
        written = sharded_writer.commit(out, _metadata(conversion, dropped, inexact, figures, digests))
    reports = (_report(p, figures[column[i]] if i in column else None) for i, p in enumerate(conversion.tensors))
    return Report(
        written.paths[0], written.paths, tuple(reports), conversion.original_bytes, conversion.stored_bytes,
        written.nbytes, time.perf_counter() - started, written.root, conversion.unused, tuple(dropped),
        unquantized(conversion),
    )  # fmt: skip


def _check_unchanged(conversion: Conversion) -> None:
    """Raise SourceError if a file of the source has changed since it was opened."""
    for file, state in zip(conversion.source.files, conversion.states, strict=False):
        if file.state != state:
            raise SourceError(f"{file.path}: changed while it was being converted")


def _documents(conversion: Conversion) -> tuple[dict[str, bytes], list[str]]:
    """Return the documents for the file, and the keys that were removed from them."""
    texts, dropped = {}, []
    for name, data in conversion.source.documents.items():
        try:
            texts[name], keys = documents.clean(name, data)
            documents.check(name, texts[name])
        except AibitError as error:
            raise SourceError(f"{conversion.source.path}: {error}") from error
        dropped += keys
        if name == "config.json" and conversion.dtype is not None:
            texts[name] = documents.with_key(name, texts[name], "dtype", conversion.dtype)
    dropped += [f"config.json:{key}" for key in conversion.ignored]
    if conversion.recipe.scheme is not None or conversion.recipe.rules:
        texts.pop(recipe.DOCUMENT, None)  # belongs to an earlier conversion
    if conversion.recipe.text is not None:
        texts[recipe.DOCUMENT] = conversion.recipe.text.encode()
    return texts, dropped


def _metadata(
    conversion: Conversion, dropped: list[str], inexact: list[int], figures: np.ndarray, digests: list[str]
) -> dict[str, Value]:
    files = conversion.source.files
    values: dict[str, Any] = (
        dict(conversion.about)
        | dict(conversion.source.metadata)
        | {
            "model.parameters": conversion.parameters,
            "source.kind": conversion.source.kind,
            "source.files": [file.name for file in files],
            "source.sizes": [file.size for file in files],
            "source.xxh3_128": digests,
            "tool.name": "aibit",
            "tool.version": __version__,
            "tool.libraries": [*_libraries()],
            "quantization.recipe": conversion.recipe.lines(),
            "quantization.error.tensor": np.array(inexact, np.int64),
            "quantization.error.relative_rms": figures[:, 0],
            "quantization.error.largest": figures[:, 1],
            "quantization.error.signal_to_noise_db": figures[:, 2],
        }
    )
    if dropped:
        values["config.dropped_keys"] = dropped
    return values


@cache
def _libraries() -> tuple[str, ...]:
    found = []
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # not installed, so not used
            found.append(f"{name} {version(name).split('+')[0]}")
    return tuple(found)


def _report(assignment: Assignment, figures: np.ndarray | None) -> TensorReport:
    """Make the report of a tensor; ``figures`` are those of ``EncodingError``, all zero if it was stored exactly."""
    tensor = assignment.tensor
    return TensorReport(
        tensor.name,
        tensor.shape,
        tensor.scheme.stated.text,
        assignment.source_bytes,
        assignment.stored_bytes,
        EncodingError(*figures.tolist()) if figures is not None and figures.any() else None,
        tensor.alias_of,
        assignment.keep is not None,
    )
