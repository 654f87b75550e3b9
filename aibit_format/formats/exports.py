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

from ..errors import WriteError
from ..file.sharded_reader import Opened
from ..io.mapped import Path

__all__ = ["BUILTIN", "export", "options_of"]

# Format -> "module:function".
BUILTIN: dict[str, str] = {
    "huggingface": "aibit_format.formats.huggingface.export:export",
    "safetensors": "aibit_format.formats.safetensors.export:export",
    "gguf": "aibit_format.formats.gguf.export:export",
}
_OF_ALL = frozenset({"file", "path", "overwrite", "on_progress"})


def export(file: Opened, to: str, path: Path, **options: Any) -> list[str]:
    """Write an open ``.aibit`` file in another format; returns the paths written.

    Args:
        file: the model to write.
        to: ``"huggingface"``, a directory that transformers and bitsandbytes load directly; ``"safetensors"``, a
            directory of unquantized weights; ``"gguf"``, a file for llama.cpp.
        path: the directory or file to write.
        options: those of the format, and ``overwrite`` and ``on_progress``; see its module.

    Raises:
        WriteError: the format is unknown, the output exists, or the format cannot hold a tensor.
        SchemeError: the dtype asked for cannot hold a value.
    """
    return _exporter(to)(file, os.fspath(path), **options)


def options_of(to: str) -> frozenset[str]:
    """Return the names of the options that only this format takes."""
    return frozenset(inspect.signature(_exporter(to)).parameters) - _OF_ALL


def _exporter(to: str) -> Callable[..., list[str]]:
    if to not in BUILTIN:
        raise WriteError(f"unknown format {to!r}; known: {', '.join(BUILTIN)}")
    module, attribute = BUILTIN[to].split(":")
    return vars(import_module(module))[attribute]
