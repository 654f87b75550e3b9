"""Exports: ways out. One file a foreign format, one line here for each.

An exporter is ``export(file, path, *, its options, overwrite=False, on_progress=None) -> list of the paths written``.
It writes under temporary names, a tensor at a time, and leaves nothing behind after an error.
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
        file: what to write.
        to: ``"huggingface"``, a directory that transformers and bitsandbytes load as it is; ``"safetensors"``, a
            directory of weights that are not quantized; ``"gguf"``, a file for llama.cpp.
        path: the directory or file to write.
        options: those of the format, and ``overwrite`` and ``on_progress``; see its module.

    Raises:
        WriteError: an unknown format, an output that exists, a tensor that the format has no place for.
        SchemeError: a value that the wanted dtype cannot hold.
    """
    return _exporter(to)(file, os.fspath(path), **options)


def options_of(to: str) -> frozenset[str]:
    """Names of the options that a format has for itself."""
    return frozenset(inspect.signature(_exporter(to)).parameters) - _OF_ALL


def _exporter(to: str) -> Callable[..., list[str]]:
    if to not in BUILTIN:
        raise WriteError(f"unknown format {to!r}; known: {', '.join(BUILTIN)}")
    module, attribute = BUILTIN[to].split(":")
    return vars(import_module(module))[attribute]
