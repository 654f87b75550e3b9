"""Exports models to foreign formats. Each has one module, and one line here that registers it.

An exporter is ``export(file, path, *, its options, overwrite=False, on_progress=None) -> list of the paths written``.
It writes under temporary names, one tensor at a time, and leaves nothing behind after an error.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..container import documents
from ..errors import WriteError
from ..file.sharded_reader import Opened, opened, whole
from ..hf.widths import KEY
from ..io.mapped import Path

__all__ = ["BUILTIN", "export", "options_of"]

# Format -> "module:function".
BUILTIN: dict[str, str] = {
    "huggingface": "aibit_format.formats.huggingface.export:export",
    "safetensors": "aibit_format.formats.safetensors.export:export",
    "gguf": "aibit_format.formats.gguf.export:export",
    "onnx": "aibit_format.formats.onnx.export:export",
}
_OF_ALL = frozenset({"file", "path", "overwrite", "on_progress"})


def export(
    source: Path | Opened,
    to: str,
    path: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> list[str]:
    """Write a model in another format; return the paths written.

    Args:
        source: an ``.aibit`` file, or the first of a model's shards: its path, or the open file.
        to: ``"huggingface"``, a directory that transformers loads directly, quantized weights in the form of the source
            or of the library that holds them; ``"safetensors"``, a
            directory of unquantized weights; ``"gguf"``, a file for llama.cpp; ``"onnx"``, a graph for onnxruntime.
        path: the directory or file to write.
        overwrite: replace existing files.
        on_progress: called with bytes done, total bytes, and the tensor's name.
        options: those of the format. ``huggingface``: ``dtype``, ``type``, ``max_shard_size``, ``dequantize``;
            ``safetensors``: ``dtype``, ``max_shard_size``; ``gguf``: ``type``;
            ``onnx``: ``decoded``, ``in_place``, ``accuracy``. The format's ``export`` explains them.

    Raises:
        WriteError: the format is unknown, the output exists, or the format cannot hold a tensor.
        SchemeError: the dtype asked for cannot hold a value.
        FormatError, LoadError: the source is not valid, or is a shard other than the first.
        MissingPackageError: the format needs a package that is not installed.
    """
    write = _exporter(to)
    with opened(source) as file:
        _check_widths(file, to)
        return write(whole(file), os.fspath(path), overwrite=overwrite, on_progress=on_progress, **options)


def _check_widths(file: Opened, to: str) -> None:
    """Raise WriteError if layers have different widths, which only the loader here builds."""
    text = file.documents.get("config.json")
    config = {} if text is None else documents.parse_json("config.json", text)
    config = config if isinstance(config, dict) else {}
    inner = config.get("text_config")
    for said in (config, inner if isinstance(inner, dict) else {}):
        if said.get(KEY):
            raise WriteError(
                f"{file.path}: its layers have different {' and '.join(said[KEY])} ({KEY} in config.json), "
                f"for which {to} has no words; prune the original without uneven widths, or keep the .aibit file"
            )


def options_of(to: str) -> frozenset[str]:
    """Return the names of the options that only this format takes."""
    return frozenset(inspect.signature(_exporter(to)).parameters) - _OF_ALL


def _exporter(to: str) -> Callable[..., list[str]]:
    if to not in BUILTIN:
        raise WriteError(f"unknown format {to!r}; known: {', '.join(BUILTIN)}")
    module, attribute = BUILTIN[to].split(":")
    return vars(import_module(module))[attribute]
