"""Converts a source to an ``.aibit`` file, or to shards, without holding the whole model in memory."""

from __future__ import annotations

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
from ..calibrate.calibrate import statistics_of
from ..calibrate.hessians import Hessians
from ..calibrate.statistics import Statistics, hessians
from ..calibrate.statistics import importance as importance_of
from ..container import documents, pruning, vocabulary
from ..container.metadata import Value
from ..container.plan import plan
from ..errors import AibitError, MissingPackageError, RecipeError, SourceError, WriteError
from ..file import sharded_writer
from ..file.progress import Progress
from ..file.ranks import ALONE, Ranks, of_torch
from ..formats.aibit import Aibit
from ..formats.models import meta_model_of, missing_dtype
from ..formats.sources import open_source
from ..io import hub
from ..io.mapped import Path
from ..native.cores import usable_cores
from ..transform.prune.plan import Plan, Wanted
from ..transform.prune.source import Pruned
from . import recipe
from .conversion import Assignment, Conversion, assign, assign_alone
from .error import EncodingError
from .int8_auto import step
from .pipeline import Pipeline
from .prune import pruned
from .recipe import Recipe
from .transform import transformed
from .unquantized import unquantized

Calibration = Path | Sequence[Path] | Statistics | None
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
    replaced: str | None = None  # the scheme that the recipe has for it, which cannot hold rows of its length
    method: str | None = None  # with which it was rounded
    fallback: str | None = None  # why the recipe's method was not used


@dataclass(frozen=True, slots=True)
class ChoiceReport:
    """Report what ``int8-auto`` chose for a tensor, its largest scale, and the zero point that goes with that."""

    name: str
    mean: float
    std: float
    score: float
    mode: str
    scale: float
    zero_point: int


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
    choices: tuple[ChoiceReport, ...] = ()
    statistics: str | None = None  # the digest of those that were used
    transformed: tuple[str, ...] = ()  # what was done to the model before
    notes: tuple[str, ...] = ()  # what users should know of that
    pruned: tuple[str, ...] = ()  # what was left out of the model, at each step

    @property
    def compression_ratio(self) -> float:
        """Return the ratio of the original to the quantized bytes of the weights."""
        return self.original_bytes / self.quantized_bytes if self.quantized_bytes else 1.0

    @property
    def memory_saved_bytes(self) -> int:
        """Return how many bytes fewer the quantized weights take."""
        return self.original_bytes - self.quantized_bytes


def prepare(
    source: Any,
    wanted: Recipe,
    architecture: str | None = None,
    tokenizer: Any = None,
    calibration: Calibration = None,
    on_progress: Progress | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    jobs: int | None = None,
    prune: Wanted | Plan | None = None,
) -> Conversion:
    """Decide what ``convert`` will do, by reading only headers and ``config.json``.

    An ``.aibit`` file describes its model itself. Without transformers, it can still be converted if the recipe keeps
    all tensors that its rules do not name.

    Args:
        source, architecture, tokenizer, calibration, importance: as for ``convert``. Statistics of a text are taken
            here.
        wanted: the recipe.
        on_progress: as for ``calibrate``, if statistics are taken; and for what is searched for in transformations.
        jobs: threads of such a search; as for ``convert``.
        prune: what is left out of the model first.

    Raises:
        MissingPackageError: transformers, which knows which tensors are a model's weights, is not installed.
        RecipeError: the recipe has a scheme for the weights of a model, and the source is no model.
        SourceError: the model does not use a tensor, and no ``architecture`` says that this is meant.
        SchemeError, LoadError: as for ``convert``.
    """
    opened = open_source(source, tokenizer)
    states = tuple(file.state for file in opened.files)
    if opened.no_model:
        if wanted.transformations or prune is not None:
            raise RecipeError(f"{opened.path}: no model that could be transformed: {opened.no_model}")
        if calibration is not None:
            raise RecipeError(f"{opened.path}: no model that statistics could be of: {opened.no_model}")
        if wanted.method is not None:
            raise RecipeError(f"{opened.path}: method {wanted.method.text}: there is no model: {opened.no_model}")
        wanted = wanted.told(None)
        if not wanted.undecided and wanted.scheme is not None:
            raise RecipeError(
                f"{opened.path}: nothing says which tensors {wanted.scheme.text} is for, as there is no model: "
                f"{opened.no_model}; name them (--tensor 'REGEX={wanted.scheme.text}'), or say --scheme keep"
            )
        return replace(assign_alone(opened, wanted.decided(quantized=True)), states=states)
    wanted = wanted.decided(any(tensor.scheme for tensor in opened.tensors.values()))
    dtype = missing_dtype(opened)
    try:
        model = meta_model_of(opened, architecture, dtype)
    except MissingPackageError as error:
        if not isinstance(opened, Aibit):
            raise
        if wanted.scheme is not None or wanted.transformations or architecture or prune is not None:
            what = "only transformers knows to which weights a scheme applies; give --scheme keep, or install it"
            raise MissingPackageError(f"{opened.path}: {what}: {error}") from error
        return replace(assign_alone(opened, wanted, opened.about), states=states)
    if prune is not None:
        opened, calibration = pruned(opened, model, prune, wanted, calibration, dtype, on_progress)
        model = opened.model
    statistics, notes = None, opened.notes if isinstance(opened, Pruned) else ()
    if wanted.transformations:
        if importance is not None:
            raise RecipeError("an importance of columns is of those before a transformation: give calibration instead")
        opened, statistics = transformed(opened, model, wanted, calibration, dtype, on_progress, jobs)
        model, notes = opened.model, (*notes, *opened.notes)
    elif calibration is not None:
        every = None if wanted.method is None else ""  # Hessians are taken of all weights, or none
        statistics = statistics_of(opened, model, calibration, architecture, on_progress, every)
    if statistics is not None:
        importance = importance or importance_of(statistics)
    products = None if wanted.method is None else _hessians(wanted.method.text, statistics)
    assigned = assign(
        opened, model, wanted.told(statistics), partial=architecture is not None, importance=importance,
        hessians=products, statistics=statistics,
    )  # fmt: skip
    ignored = model.dropped_keys
    return replace(assigned, states=states, dtype=dtype, ignored=ignored, statistics=statistics, notes=notes)


def _hessians(method: str, statistics: Statistics | None) -> Mapping[str, Hessians]:
    """Return the Hessians that a method needs; raises RecipeError if there are none at all."""
    if statistics is None:
        raise RecipeError(
            f"method {method} rounds by statistics of activations, and there are none: give a text, or a file of aibit "
            "calibrate --hessians (--calibrate FILE)"
        )
    found = hessians(statistics)
    if not found:
        raise RecipeError(
            f"method {method} needs Hessians, and these statistics have none: take them with aibit calibrate --hessians"
        )
    return found


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
    calibration: Calibration = None,
    importance: Mapping[str, np.ndarray] | None = None,
    method: str | None = None,
    transform: str | Sequence[str] = (),
    prune: str | Wanted | Plan | None = None,
) -> Report:
    """Convert ``source`` to the ``.aibit`` file ``path``, or to shards with names derived from it.

    Args:
        source: a path (see ``formats.sources`` for the formats), an open ``Source``, or a transformers model.
        path: the file to write.
        scheme: of the Linear weights, or one of ``presets.PRESETS``; ``"keep"`` keeps quantized ones unchanged. By
            default ``"keep"`` for a source that is quantized, otherwise ``"int8"``.
        tensors: regular expression -> scheme, for tensors in whose name it is found; the last match wins.
        overwrite: replace ``path``, or its shards, if they exist. The old model can be opened until the new one can.
        on_progress: called with bytes done, total bytes, and the tensor's name.
        architecture: transformers class, if the config names none or another is wanted. Tensors that this class does
            not use are left out; without it they are an error.
        tokenizer: of a model that is in memory.
        recipe_file: TOML with ``scheme``, ``transform`` and a table ``[tensors]``, kept in the output as
            ``recipe.toml``. The arguments ``scheme`` and ``transform`` replace what it says, and ``tensors`` are added
            after its rules.
        jobs: threads; as many as there are cores to use by default. The result does not depend on it.
        max_shard_size: write shards of at most so many bytes of planes, a number or a size such as ``"5GB"``: the same
            shards into which ``rewrite.split`` cuts one file. ``m.aibit`` gives ``m-00001-of-00003.aibit`` and so on.
        distributed: this is one of several processes of torch.distributed, which all call this with the same arguments
            on the same file system. Each writes some of the shards and reads only their tensors. The result does not
            depend on the number of processes.
        calibration: statistics of activations: a file of ``calibrate`` or an imatrix of llama.cpp; ``Statistics``; or
            texts to take them from here (``"default"``: the one that comes with this package). ``int8-auto`` chooses by
            them, ``int8-static`` needs the ranges in them, and they are the ``importance``, unless that is given.
        importance: weights of the squared error of each column, f32 [columns], by the model's names of tensors; of the
            matrices of a stack f32 [matrices, columns], if each has its own. Means of squared inputs, as llama.cpp's
            imatrix has them, are such. Schemes that have a choice of scales (``Scheme.takes_importance``) use them.
        method: ``"gptq"``, with options such as ``"gptq,damping=0.02,ordered=0"``, rounds weights so that the error of
            a column is made up for by later ones. It needs a ``calibration`` with Hessians. Weights without one, and
            schemes that cannot be rounded so, are encoded as without it, and the report says which.
        transform: what is done to the model first, so that less is lost: ``"awq"``, ``"smooth,alpha=0.5"``,
            ``"rotate,seed=0"``, or several; see ``transform.method``. It computes the same then, but for rounding.
        prune: what is left out of the model before that: ``"layers=20"``, ``"channels=1024,refit"``; see
            ``transform.prune.plan.Wanted``. It goes by ``calibration``, of which texts are taken again of what is left.

    Raises:
        SourceError, RecipeError, SchemeError, WriteError, LoadError: the message names the file and the tensor. No
            files are left behind. With ``distributed``, all processes raise if one does.
    """
    together = of_torch() if distributed else ALONE
    with together.together():
        recipe = Recipe.of(scheme, tensors, recipe_file, method, transform)
        wanted = Wanted.parse(prune) if isinstance(prune, str) else prune
        conversion = prepare(source, recipe, architecture, tokenizer, calibration, None, importance, jobs, wanted)
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
    chosen = [i for i, assignment in enumerate(conversion.tensors) if assignment.choice is not None]
    steps = np.zeros((len(chosen), 2))
    parts, owners = None, np.zeros(len(tensors), np.int64)
    if max_shard_size is not None:
        parts = sharded_writer.cut(tensors, sharded_writer.parse_size(max_shard_size))
        for i, part in enumerate(parts):
            owners[part] = i % ranks.count
    elif ranks.count > 1:
        raise WriteError(f"{os.fspath(path)}: {ranks.count} processes write shards, not one file: say max_shard_size")
    metadata = _metadata(conversion, dropped, inexact, figures, [" " * 32] * len(files), chosen, steps)
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
        for place, i in enumerate(chosen):
            if owners[i] == ranks.rank:
                scale, zero_point = (out.written(tensors[i].name, role) for role in ("scale", "zero_point"))
                steps[place] = (0.0, 0.0) if scale is None else step(scale, zero_point)
        figures, found = ranks.share(figures, owners[inexact]), ranks.share(found)
        steps = ranks.share(steps, owners[chosen])
        digests = [row.tobytes().hex() for row in found]
        metadata = _metadata(conversion, dropped, inexact, figures, digests, chosen, steps)
        written = sharded_writer.commit(out, metadata)
    reports = (_report(p, figures[column[i]] if i in column else None) for i, p in enumerate(conversion.tensors))
    return Report(
        written.paths[0], written.paths, tuple(reports), conversion.original_bytes, conversion.stored_bytes,
        written.nbytes, time.perf_counter() - started, written.root, conversion.unused, tuple(dropped),
        unquantized(conversion), _choices(conversion, chosen, steps),
        None if conversion.statistics is None else conversion.statistics.digest,
        tuple(each.text for each in conversion.recipe.transformations), conversion.notes,
        tuple(conversion.source.metadata.get(pruning.APPLIED, ())),
    )  # fmt: skip


def file_bytes(conversion: Conversion) -> int:
    """Return how long the file of a conversion is, without reading weights."""
    texts, dropped = _documents(conversion)
    inexact = [i for i, each in enumerate(conversion.tensors) if each.inexact and each.tensor.alias_of is None]
    chosen = [i for i, each in enumerate(conversion.tensors) if each.choice is not None]
    figures, steps = np.zeros((len(inexact), 3)), np.zeros((len(chosen), 2))
    digests = [" " * 32] * len(conversion.source.files)
    metadata = _metadata(conversion, dropped, inexact, figures, digests, chosen, steps)
    tensors = [each.tensor for each in conversion.tensors]
    return plan(tensors, metadata, {name: len(text) for name, text in texts.items()}).file_size


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


def _choices(conversion: Conversion, chosen: Sequence[int], steps: np.ndarray) -> tuple[ChoiceReport, ...]:
    """Report what ``int8-auto`` chose; ``steps`` are the scale and the zero point of each tensor."""
    found = []
    for i, (scale, zero_point) in zip(chosen, steps.tolist(), strict=True):
        choice: Any = conversion.tensors[i].choice
        name = conversion.tensors[i].tensor.name
        found.append(ChoiceReport(name, choice.mean, choice.std, choice.score, choice.mode, scale, int(zero_point)))
    return tuple(found)


def _of_statistics(conversion: Conversion, chosen: list[int], steps: np.ndarray) -> dict[str, Value]:
    """Return the metadata about the statistics that were used, and about what ``int8-auto`` chose by them."""
    if conversion.statistics is None:
        return {}
    about = conversion.statistics.about
    values: dict[str, Value] = {
        "calibration.statistics": conversion.statistics.digest,
        "calibration.source": about.source,
        "calibration.text": about.text,
        "calibration.tokens": about.tokens,
    }
    if chosen:
        choices: list[Any] = [conversion.tensors[i].choice for i in chosen]
        values |= {
            "quantization.auto.tensor": np.array(chosen, np.int64),
            "quantization.auto.mean": np.array([each.mean for each in choices]),
            "quantization.auto.std": np.array([each.std for each in choices]),
            "quantization.auto.score": np.array([each.score for each in choices]),
            "quantization.auto.mode": [each.mode for each in choices],
            "quantization.auto.scale": steps[:, 0],
            "quantization.auto.zero_point": steps[:, 1].astype(np.int64),
        }
    return values


def _metadata(
    conversion: Conversion, dropped: list[str], inexact: list[int], figures: np.ndarray, digests: list[str],
    chosen: list[int], steps: np.ndarray,
) -> dict[str, Value]:  # fmt: skip
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
    if (origin := hub.origin_of(conversion.source.path)) and "source.repository" not in values:
        values |= {"source.repository": origin.repository, "source.revision": origin.revision}
    values |= _of_statistics(conversion, chosen, steps)
    if vocabulary.SIZE in values:  # of the model whose vocabulary was cut first
        values.setdefault(vocabulary.SOURCE, digests)
    if conversion.recipe.method is not None:
        values["quantization.method"] = conversion.recipe.method.text
        rounded = [i for i, assignment in enumerate(conversion.tensors) if assignment.method is not None]
        values["quantization.method.tensor"] = np.array(rounded, np.int64)
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
        None if assignment.replaced is None else assignment.replaced.text,
        None if assignment.method is None else assignment.method.factors.options.text,
        assignment.fallback,
    )
