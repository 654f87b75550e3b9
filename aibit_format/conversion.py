"""Converting: a source in, one ``.aibit`` file out, one tensor in memory at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from threading import Barrier
from typing import Any

import numpy as np

from . import digest, documents, draft, recipe, writer
from ._version import __version__
from .engine import encode
from .errors import AibitError, SchemeError, SourceError
from .measure import EncodingError, measure
from .metadata import Value
from .recipe import Plan, Planned, Recipe
from .skeleton import skeleton
from .sources import open_source
from .storage import Path, pages

# Bytes of the source done and in all, and the tensor that is being worked on.
Progress = Callable[[int, int, str], None]

_LIBRARIES = ("numpy", "torch", "transformers")  # those whose version can change a byte of the output


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of one tensor. ``error`` is ``None`` where it was stored exactly, or ``kept`` as it was quantized."""

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
    """What a conversion did."""

    path: str
    tensors: tuple[TensorReport, ...]
    original_bytes: int  # of the weights in the source
    quantized_bytes: int  # of all planes in the file
    file_bytes: int
    seconds: float
    root: str
    unused: tuple[str, ...]
    dropped_keys: tuple[str, ...]

    @property
    def compression_ratio(self) -> float:
        """Original over quantized bytes of the weights."""
        return self.original_bytes / self.quantized_bytes if self.quantized_bytes else 1.0

    @property
    def memory_saved_bytes(self) -> int:
        """Bytes of weights that need not be held any more."""
        return self.original_bytes - self.quantized_bytes


def make_plan(
    source: Any,
    scheme: str | None = None,
    tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    architecture: str | None = None,
    tokenizer: Any = None,
    recipe_file: Path | None = None,
) -> Plan:
    """What ``convert`` would do with the same arguments; reads headers and ``config.json`` only."""
    text = None
    if recipe_file is not None:
        text, its_scheme, rules = recipe.read_file(recipe_file)
        pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
        scheme, tensors = scheme or its_scheme, [*rules, *pairs]
    opened = open_source(source, tokenizer)
    states = tuple(file.state for file in opened.files)
    if scheme is None:
        scheme = recipe.KEEP if any(t.scheme for t in opened.tensors.values()) else recipe.DEFAULT
    wanted = Recipe.of(scheme, tensors, text)
    if opened.no_model:
        return replace(recipe.plan_alone(opened, wanted), states=states)
    if "config.json" not in opened.documents:
        raise SourceError(f"{opened.path}: no config.json")
    config = documents.parse_json("config.json", opened.documents["config.json"])
    model = skeleton(config, architecture or opened.architecture)
    return replace(recipe.plan(opened, model, wanted), states=states)


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
) -> Report:
    """Convert ``source`` to the ``.aibit`` file ``path``.

    Args:
        source: a path (``aibit_format.sources`` says what can be there), an open ``Source``, or a transformers model.
        scheme: of the Linear weights; ``"keep"`` leaves quantized ones as the source has them. By default ``"keep"``
            for a source that is quantized and ``"int8"`` for one that is not.
        tensors: regular expression -> scheme for the names it is found in; the last that matches wins.
        overwrite: replace ``path`` if it exists.
        on_progress: called with bytes done, bytes in all, and the tensor's name.
        architecture: of transformers, when the config names none.
        tokenizer: of a model that is in memory.
        recipe_file: TOML with ``scheme`` and a table ``[tensors]``, kept in the output as ``recipe.toml``; ``scheme``
            takes the place of its own, and ``tensors`` come after its rules.
        jobs: threads; as many as there are cores by default. The bytes do not depend on it.

    Raises:
        SourceError, RecipeError, SchemeError, WriteError, LoadError: each names the file and the tensor. No file is
            left behind.
    """
    planned = make_plan(source, scheme, tensors, architecture, tokenizer, recipe_file)
    return run(planned, path, overwrite, on_progress, jobs)


def run(
    plan: Plan, path: Path, overwrite: bool = False, on_progress: Progress | None = None, jobs: int | None = None
) -> Report:
    """Do what ``plan`` says."""
    started = time.perf_counter()
    jobs = jobs or os.cpu_count() or 1
    texts, dropped = _documents(plan)
    inexact = [i for i, planned in enumerate(plan.tensors) if planned.inexact and planned.tensor.alias_of is None]
    column = {i: place for place, i in enumerate(inexact)}
    figures = np.zeros((3, len(inexact)))
    metadata = _metadata(plan, dropped, inexact, figures, [" " * 32] * len(plan.source.files))
    info = draft.plan([p.tensor for p in plan.tensors], metadata, {name: len(text) for name, text in texts.items()})
    reports: list[TensorReport] = []
    done, total = 0, plan.original_bytes
    with (
        writer.Writer(path, info, overwrite=overwrite) as out,
        ThreadPoolExecutor(1) as reading,
        _workers(jobs) as workers,
    ):
        # Taking the source's digests reads each file from end to end, a little ahead of the encoders.
        digests = [reading.submit(_digest, file.path) for file in plan.source.files]
        errors = [workers.submit(_write, out, planned, plan.source.path) for planned in plan.tensors]
        try:
            for name, text in texts.items():
                out.write_document(name, text)
            for i, (planned, pending) in enumerate(zip(plan.tensors, errors, strict=True)):
                error = pending.result()
                if error is not None:
                    figures[:, column[i]] = error.relative_rms, error.largest, error.signal_to_noise_db
                reports.append(_report(planned, error))
                done += planned.source_bytes
                if on_progress is not None:
                    on_progress(done, total, planned.tensor.name)
            wait(digests)
            _check_unchanged(plan)
            found = [future.result() for future in digests]
        finally:  # after an error, what has not begun is not begun
            workers.shutdown(cancel_futures=True)
            reading.shutdown(cancel_futures=True)
        written = out.commit(_metadata(plan, dropped, inexact, figures, found))
    front = written.front_matter()
    return Report(
        os.fspath(path), tuple(reports), plan.original_bytes, plan.stored_bytes, written.file_size,
        time.perf_counter() - started, written.header(front)[-16:].hex(), plan.unused, tuple(dropped),
    )  # fmt: skip


def _write(out: writer.Writer, planned: Planned, path: str) -> EncodingError | None:
    """Read, round, encode and write one tensor; the error made."""
    tensor = planned.tensor
    try:
        if planned.keep is not None:
            out.write(tensor.name, planned.keep())
        if planned.read is None:
            return None
        values, dtype = planned.read()
        if tensor.transposed != planned.source_transposed:
            values = np.ascontiguousarray(values.T)  # laid out once here: encoding and measuring would each do it again
        if tensor.scheme.lossy:
            planes = encode(tensor.scheme, recipe.rounded(values, dtype, planned.slot_dtype), planned.slot_dtype)
        else:
            planes = encode(tensor.scheme, values, dtype)
        out.write(tensor.name, planes)
        return measure(tensor.scheme, planes, values, dtype)
    except SchemeError as error:
        raise SchemeError(f"{path}: tensor {tensor.name!r} (from {', '.join(planned.sources[:2])}): {error}") from error


def _check_unchanged(plan: Plan) -> None:
    """Raise SourceError if a file of the source is not what it was when the conversion was planned."""
    for file, state in zip(plan.source.files, plan.states, strict=False):
        if file.state != state:
            raise SourceError(f"{file.path}: changed while it was being converted")


def _digest(path: str) -> str:
    return digest.stream_digest(pages(path))


def _documents(plan: Plan) -> tuple[dict[str, bytes], list[str]]:
    """The documents that go into the file, and the keys that had to stay out of them."""
    texts, dropped = {}, []
    for name, data in plan.source.documents.items():
        try:
            texts[name], keys = documents.clean(name, data)
            documents.check(name, texts[name])
        except AibitError as error:
            raise SourceError(f"{plan.source.path}: {error}") from error
        dropped += keys
    if plan.recipe.scheme is not None or plan.recipe.rules:
        texts.pop(recipe.DOCUMENT, None)  # it would tell of an earlier conversion
    if plan.recipe.text is not None:
        texts[recipe.DOCUMENT] = plan.recipe.text.encode()
    return texts, dropped


def _metadata(
    plan: Plan, dropped: list[str], inexact: list[int], figures: np.ndarray, digests: list[str]
) -> dict[str, Value]:
    files = plan.source.files
    model: dict[str, Any] = {"model.missing": plan.source.no_model}
    if plan.skeleton is not None:
        model = {
            "model.architecture": plan.skeleton.architecture,
            "model.type": plan.skeleton.model_type,
            "model.dtype": plan.skeleton.dtype,
        }
    values: dict[str, Any] = (
        model
        | dict(plan.source.metadata)
        | {
            "model.parameters": plan.parameters,
            "source.kind": plan.source.kind,
            "source.files": [file.name for file in files],
            "source.sizes": [file.size for file in files],
            "source.xxh3_128": digests,
            "tool.name": "aibit",
            "tool.version": __version__,
            "tool.libraries": [f"{name} {version(name).split('+')[0]}" for name in _LIBRARIES],
            "quantization.recipe": plan.recipe.lines(),
            "quantization.error.tensor": np.array(inexact, np.int64),
            "quantization.error.relative_rms": figures[0],
            "quantization.error.largest": figures[1],
            "quantization.error.signal_to_noise_db": figures[2],
        }
    )
    if dropped:
        values["config.dropped_keys"] = dropped
    return values


def _report(planned: Planned, error: EncodingError | None) -> TensorReport:
    tensor = planned.tensor
    return TensorReport(
        tensor.name,
        tensor.shape,
        tensor.scheme.text,
        planned.source_bytes,
        planned.stored_bytes,
        error,
        tensor.alias_of,
        planned.keep is not None,
    )


def _workers(jobs: int) -> ThreadPoolExecutor:
    """Threads that encode a tensor each, with torch's operations on that thread alone.

    torch's own threads would meet at a barrier after every small operation, and stand there whenever another process
    has one of the cores.
    """
    import torch

    def alone() -> None:
        # At its first operation a thread takes over the number that was last set anywhere. Asking counts as one.
        torch.get_num_threads()
        torch.set_num_threads(1)

    before = torch.get_num_threads()
    workers, all_there = ThreadPoolExecutor(jobs, initializer=alone), Barrier(jobs + 1)
    for _ in range(jobs):
        workers.submit(all_there.wait)
    all_there.wait()
    torch.set_num_threads(before)  # for threads that begin after these
    return workers
