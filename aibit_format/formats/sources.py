"""Sources: what can be converted. One file a foreign format, one line here for each.

A source is a lazy set of tensors: shapes and dtypes are known at once, values are read one at a time.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ..errors import SourceError
from .source import Source, SourceFile, SourceTensor, values

__all__ = ["BUILTIN", "Source", "SourceFile", "SourceTensor", "open_source", "values"]

# Kind of source -> "module:class". The first whose ``matches`` says yes opens the path.
BUILTIN: dict[str, str] = {
    "aibit": "aibit_format.formats.aibit:Aibit",
    "gguf": "aibit_format.formats.gguf.source:GGUF",
    "archive": "aibit_format.formats.torch_save.archive:Archive",
    "bitsandbytes": "aibit_format.formats.huggingface.bitsandbytes:BitsAndBytes",
    "gptq": "aibit_format.formats.huggingface.gptq:GPTQ",
    "awq": "aibit_format.formats.huggingface.awq:AWQ",
    "huggingface": "aibit_format.formats.huggingface.source:Unquantized",
}

_IN_MEMORY = "aibit_format.formats.in_memory:Pretrained"


def open_source(source: Any, tokenizer: Any = None) -> Source:
    """The source at a path; a ``Source`` is given back, and a transformers model becomes one.

    Args:
        source: a path, a ``Source``, or a ``PreTrainedModel``.
        tokenizer: of the model.

    Raises:
        SourceError: there is nothing, or nothing that a source here can read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source if hasattr(source, "planes") else _family(_IN_MEMORY)(source, tokenizer)
    name = os.fspath(source)
    if not os.path.exists(name):
        raise SourceError(f"{name}: no such file or directory")
    for target in BUILTIN.values():
        family = _family(target)
        if family.matches(name):
            return family(name)
    raise SourceError(f"{name}: not a source; known: {', '.join(BUILTIN)} (a directory with config.json and weights)")


def _family(target: str) -> Any:
    module, attribute = target.split(":")
    return vars(import_module(module))[attribute]
