"""Writes a copy of a model with its graph."""

from __future__ import annotations

from ...file import rewrite, sharded_reader
from ...file.progress import Progress
from ...file.sharded_reader import whole
from ...graph.check import check
from ...graph.program import DOCUMENT, Program
from ...io.mapped import Path
from ..load.model import load_model
from .record import record


def add_graph(
    source: Path, path: Path, *, positions: int | None = None, overwrite: bool = False,
    on_progress: Progress | None = None,
) -> tuple[Program, list[str]]:  # fmt: skip
    """Write a copy of a model with the graph of what it computes; return the graph and the paths.

    Args:
        source: a file, or the first of a model's shards.
        path: the file to write, or the path from which the names of shards are derived.
        positions: how many a sequence has at most; None: the model's context.
        overwrite: replace files that exist.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        GraphError: the model cannot be recorded.
        LoadError: no model can be built of the file.
        WriteError: the output exists, or cannot be written.
    """
    with whole(sharded_reader.open(source)) as file:
        program = record(load_model(file, weight_only=True), positions)
        check(program, {name: file.info(name) for name in file})
    documents = {DOCUMENT: program.to_json()}
    paths = rewrite.edit(source, path, documents=documents, overwrite=overwrite, on_progress=on_progress)
    return program, paths
