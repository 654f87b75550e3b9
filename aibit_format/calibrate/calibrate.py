"""Takes the statistics of a model over a text, a block of the model in memory at a time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ..errors import MissingPackageError, SourceError, told_by
from ..file.progress import Progress
from ..formats.models import meta_model_of
from ..formats.sources import Source, open_source
from ..hf.meta_model import MetaModel
from ..io.hashed_reader import HashedReader
from ..io.mapped import Path
from ..io.scratch import temporary_folder
from . import files, imatrix, text
from .statistics import EPS, THRESHOLD, About, Statistics

if TYPE_CHECKING:
    from .walk import Walk

DEFAULT = "default"  # stands for the text that ships with this package
PARTIAL = ".partial"  # ends the name of the folder beside the statistics in which an unfinished run is kept


@dataclass(frozen=True)
class Options:
    """Say how statistics are taken; see ``calibrate``."""

    samples: int | None = None
    length: int | None = None
    seed: int = 0
    eps: float = EPS
    threshold: float = THRESHOLD
    hessians: str | None = None
    device: str = "cpu"
    dtype: str | None = None


def calibrate(
    source: Any,
    texts: Sequence[Path] = (),
    path: Path | None = None,
    *,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    eps: float = EPS,
    threshold: float = THRESHOLD,
    hessians: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    architecture: str | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Statistics:
    """Run a model on texts, and return the statistics of what goes into each of its layers.

    All samples go through one block of the model, then through the next: a block's weights and the inputs of one sample
    are in memory at a time, and what blocks return is in a file beside ``path``, or in a temporary one. A run that was
    stopped goes on after its last block if it is started again with the same arguments. A model that cannot be run so
    (``blocks`` says which) is held in memory whole; ``about.streamed`` of the result tells.

    Args:
        source: as for ``convert``: a path, an open ``Source``, or a transformers model.
        texts: files in UTF-8; without any, the text that ships with this package.
        path: the file to write: llama.cpp's imatrix if it ends in ``.gguf`` or ``.dat``, otherwise safetensors.
        samples: how many pieces of the texts are used: 100, or all that the text that ships with the package has.
        length: of a sample in tokens: 512, or as many as the model takes.
        seed: of the choice of samples.
        eps, threshold: of the symmetry score, kept in the statistics for ``int8-auto``.
        hessians: a regular expression: weights in whose name it is found get x^T x, f32 [K, K], too.
        device: where the model runs.
        dtype: it computes in, as ``config.json`` names it; by default that of the config.
        architecture: transformers class, if the config names none.
        overwrite: replace ``path`` if it exists.
        on_progress: called with steps done, of how many, and the name of the block.

    Raises:
        SourceError: the source cannot be read, has no tokenizer, or computes NaN; the text is too short.
        WriteError: ``path`` exists, or cannot be written.
        MissingPackageError: torch and transformers are not installed.
    """
    target = None if path is None else os.fspath(path)
    if target is not None:
        files.check_target(target, overwrite, hessians is not None)
    options = Options(samples, length, seed, eps, threshold, hessians, device, dtype)
    opened = open_source(source)
    if opened.no_model:
        raise SourceError(f"{opened.path}: no model that could be run: {opened.no_model}")
    read = text.read([os.fspath(each) for each in texts])
    walk = _walk(opened, read, options, architecture)
    if target is None:
        with temporary_folder() as folder:
            found = walk.run(os.path.join(folder.name, "state"), on_progress)
            path = os.path.join(folder.name, "statistics")
            files.save(found, path)
            return files.load(path)  # its pages, which may be more than memory has, stay mapped without the folder
    found = walk.run(target + PARTIAL, on_progress)
    if files.is_imatrix(target):
        imatrix.save(found, target, opened, overwrite)
    else:
        files.save(found, target, overwrite)
    walk.unfinished.remove()
    return files.load(target) if not files.is_imatrix(target) else found


def statistics_of(
    source: Source, model: MetaModel, wanted: Path | Sequence[Path] | Statistics, architecture: str | None = None,
    on_progress: Progress | None = None, hessians: str | None = None,
) -> Statistics:  # fmt: skip
    """Return statistics of a model: from a file of them, or taken from texts.

    Args:
        source, model: the model.
        wanted: statistics; a file of them, an imatrix too; or texts, of which ``DEFAULT`` is the one of this package.
        architecture, on_progress, hessians: as for ``calibrate``, if they are taken from texts.

    Raises:
        SourceError: as for ``calibrate``, or they are of another model.
    """
    where = "statistics"
    if isinstance(wanted, Statistics):
        found = wanted
    else:
        paths = _paths(wanted)
        if not are_texts(wanted):
            where = paths[0]
            found = imatrix.load(where, source, model) if files.holds_imatrix(where) else files.load(where)
        else:
            texts = [path for path in paths if path != DEFAULT]
            return calibrate(source, texts, architecture=architecture, on_progress=on_progress, hessians=hessians)
    found.check({name: spec.columns for name, spec in model.parameters.items() if spec.takes_inputs}, where)
    return found


def are_texts(wanted: Path | Sequence[Path] | Statistics) -> bool:
    """Tell whether these are texts to take statistics from, and not statistics or a file of them."""
    if isinstance(wanted, Statistics):
        return False
    paths = _paths(wanted)
    return len(paths) != 1 or not files.is_statistics(paths[0])


def _paths(wanted: Path | Sequence[Path]) -> list[str]:
    return [os.fspath(each) for each in ([wanted] if isinstance(wanted, (str, os.PathLike)) else wanted)]


def _walk(source: Source, read: text.Text, options: Options, architecture: str | None) -> Walk:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("running a model needs torch: pip install 'aibit-format[hf]'") from error
    from .walk import Walk

    model = meta_model_of(source, architecture, options.dtype)
    config = model.module.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    cut = text.samples(source, read, options.samples, options.length, options.seed, longest)
    about = About(
        model.architecture, digest(source), read.digest, cut.tokens, len(cut.ids), cut.ids.shape[1], options.seed,
        float(options.eps), float(options.threshold), model.dtype, True, read.names,
    )  # fmt: skip
    matches: Callable[[str], bool] = lambda name: False  # noqa: E731
    if options.hessians is not None:
        try:
            expression = re.compile(options.hessians)
        except re.error as error:
            raise SourceError(f"--hessians {options.hessians!r}: no regular expression: {error}") from error
        matches = lambda name: expression.search(name) is not None  # noqa: E731
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise SourceError(f"--device {options.device!r}: torch cannot compute there: {told_by(error)}") from error
    import transformers

    key = [about.text_of, options.hessians, device.type, torch.__version__, transformers.__version__]
    mixed = xxhash.xxh3_128(json.dumps(key).encode() + np.ascontiguousarray(cut.ids).tobytes())
    return Walk(source, model, cut.ids, about, matches, device, mixed.hexdigest())


def digest(source: Source) -> str:
    """Return the xxh3_128 of the files of a source, 32 hex digits; of its documents and shapes, if it has no files."""
    state = xxhash.xxh3_128()
    for file in source.files:
        with HashedReader(file.path) as reader:
            state.update(f"{file.name}\0{file.size}\0{reader.digest()}\0".encode())
    if not source.files:
        for name, data in sorted(source.documents.items()):
            state.update(name.encode() + data)
        for name, tensor in source.tensors.items():
            state.update(f"{name}{tensor.shape}{tensor.dtype}".encode())
    return state.hexdigest()
