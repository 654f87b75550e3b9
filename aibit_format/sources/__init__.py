"""Sources: what can be converted. One file a foreign format, one line here for each.

A source is a lazy set of tensors: shapes and dtypes are known at once, values are read one at a time.
"""

from __future__ import annotations

import os
from importlib import import_module

from ..errors import SourceError
from .base import Source, SourceFile, SourceTensor

__all__ = ["BUILTIN", "Source", "SourceFile", "SourceTensor", "open_source"]

# Kind of source -> "module:class". The first whose ``matches`` says yes opens the path.
BUILTIN: dict[str, str] = {
    "huggingface": "aibit_format.sources.huggingface:HuggingFace",
}


def open_source(path: str | os.PathLike[str]) -> Source:
    """The source at ``path``.

    Raises:
        SourceError: there is nothing, or nothing that a source here can read.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise SourceError(f"{name}: no such file or directory")
    for target in BUILTIN.values():
        module, attribute = target.split(":")
        source = vars(import_module(module))[attribute]
        if source.matches(name):
            return source(name)
    raise SourceError(f"{name}: not a source; known: {', '.join(BUILTIN)} (a directory with config.json and weights)")
