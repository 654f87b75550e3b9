"""Turns statistics into llama.cpp's imatrix, and back: the names of tensors are those of GGUF there.

The tables of ``formats.gguf`` map the names. What goes into a weight goes into all tensors that GGUF makes of it (gate
and up of experts are one weight in transformers). Where GGUF has the columns of a weight in another order, so are their
sums. Keys and values of latent attention are left out: llama.cpp multiplies other inputs with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from ..errors import SourceError, WriteError
from ..formats.files import pages
from ..formats.gguf import imatrix
from ..formats.gguf.architecture import Architecture, Place
from ..formats.gguf.architectures import KNOWN, of_config
from ..formats.gguf.operations import Columns, KeysAndValues, Operation, Then
from ..formats.models import config_of, meta_model_of
from ..formats.source import Source
from ..hf.meta_model import MetaModel
from ..io.atomic import AtomicFile
from .statistics import About, Inputs, Statistics


def save(statistics: Statistics, path: str, source: Source, overwrite: bool = False) -> None:
    """Write an imatrix: of the old form if the path ends in ``.dat``, otherwise GGUF.

    Raises:
        WriteError: GGUF has no names for the model's tensors; the file exists, or cannot be written.
    """
    _, places, config = _places(source, meta_model_of(source, statistics.about.architecture))
    entries = {}
    for name, found in statistics.inputs.items():
        place = places.get(statistics.ties.get(name, name))
        if place is None or not _says(place.row.operation):
            continue
        sums = _moved(place.row.operation, found.sum2, config)
        for part in place.parts:
            entries[part] = imatrix.Sums(sums, found.counts)
    about = statistics.about
    if not entries:
        raise WriteError(f"{path}: none of the model's layers has a name in GGUF: write a file of another suffix")
    data = imatrix.encode(imatrix.IMatrix(entries, about.names, about.samples, about.length), path.endswith(".dat"))
    try:
        with AtomicFile(path, overwrite) as out:
            out.write(data)
            out.publish()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}") from error


def load(path: str, source: Source, model: MetaModel) -> Statistics:
    """Read an imatrix of either form, as statistics of a model: counts and sums of squares alone.

    Raises:
        SourceError: it is damaged, or of another model.
    """
    matrix = imatrix.read(path)
    architecture, places, config = _places(source, model)
    known = {part for place in places.values() for part in place.parts}
    for name in matrix.entries:
        # What has no number of a layer may be left out: the head, where it is tied.
        if name not in known and (name.startswith("blk.") or not architecture.has(name)):
            raise SourceError(f"{path}: an imatrix of another model: {name!r} has no place in {model.architecture}")
    inputs: dict[str, Inputs] = {}
    for name, spec in model.parameters.items():
        place = places.get(model.ties.get(name, name))
        if not spec.takes_inputs or place is None or not _says(place.row.operation):
            continue
        part = next((part for part in place.parts if part in matrix.entries), None)
        if part is None:
            continue
        found, groups = matrix.entries[part], spec.shape[0] if spec.role == "experts" else 1
        if found.sum2.size != groups * spec.columns or len(found.counts) not in (1, groups):
            raise SourceError(
                f"{path}: an imatrix of another model: {part!r} has {found.sum2.size} values there, and {name!r} "
                f"{groups} x {spec.columns} columns here"
            )
        sums = found.sum2.reshape(groups, spec.columns)
        counts = np.broadcast_to(found.counts, (groups,)).copy()
        inputs[name] = Inputs(counts, _back(place.row.operation, sums, config), experts=spec.role == "experts")
    if not inputs:
        raise SourceError(f"{path}: an imatrix of another model: it is of none of the layers that this one has")
    tokens = max(int(found.counts.sum()) for found in inputs.values())
    digest = xxhash.xxh3_128_hexdigest(pages(path).data)
    about = About(
        model.architecture, "", digest, tokens, matrix.chunks, matrix.chunk_size, streamed=False,
        names=tuple(matrix.datasets),
    )  # fmt: skip
    return Statistics(about, inputs, model.ties)


def _places(source: Source, model: MetaModel) -> tuple[Architecture, dict[str, Place], dict[str, Any]]:
    """Return the form of an architecture that has the most of a model's tensors, and where each is in GGUF."""
    config = config_of(source)
    candidates = [each for each in of_config(config) if each.architecture == model.architecture]
    if not candidates:
        raise SourceError(
            f"{source.path}: GGUF has no names for a {model.architecture} here; it has for {', '.join(KNOWN)}"
        )
    held = set(model.parameters)

    def places(each: Architecture) -> dict[str, Place]:
        layers = max((count for key in each.layers if isinstance(count := config.get(key), int)), default=0)
        return each.names(min(layers, len(held)), held)

    best = max(candidates, key=lambda each: len(places(each)))
    return best, places(best), config


def _says(operation: Operation) -> bool:
    """Tell whether what goes into a weight is what goes into the tensors that GGUF makes of it."""
    if isinstance(operation, Then):
        return _says(operation.first) and _says(operation.second)
    return not isinstance(operation, KeysAndValues)


def _moved(operation: Operation, sums: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Return sums in the order that GGUF has of the columns."""
    return operation.to_gguf(sums, config)[0] if isinstance(operation, Columns) else sums


def _back(operation: Operation, sums: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Return sums in the order that transformers has of the columns."""
    return operation.to_hugging_face([sums], config) if isinstance(operation, Columns) else sums
