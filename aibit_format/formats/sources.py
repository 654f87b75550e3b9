"""Opens sources of foreign formats. Each kind has one module, and one line here that registers it.

A source is a lazy set of tensors: shapes and dtypes are known at once, values are read one at a time.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ..errors import SourceError
from ..io import hub
from ..io.mapped import is_url
from ..io.mistaken import not_a_model, what_is_wrong
from .foreign import recognize
from .source import Source, SourceFile, SourceTensor, values

__all__ = ["BUILTIN", "Source", "SourceFile", "SourceTensor", "open_source", "values"]

# Kind of source -> "module:class". The first whose ``matches`` says yes opens the path.
BUILTIN: dict[str, str] = {
    "aibit": "aibit_format.formats.aibit:Aibit",
    "gguf": "aibit_format.formats.gguf.source:GGUF",
    "archive": "aibit_format.formats.torch_save.archive:Archive",
    "huggingface": "aibit_format.formats.huggingface.methods:Directory",
    "meta": "aibit_format.formats.meta.source:Meta",
    "mistral": "aibit_format.formats.mistral.source:Mistral",
}

_IN_MEMORY = "aibit_format.formats.in_memory:Pretrained"


def open_source(source: Any, tokenizer: Any = None) -> Source:
    """Open the source at a path, or make one of a transformers model; a ``Source`` is returned unchanged.

    Args:
        source: a path, a name on the hub (``hf://owner/name``, see ``io.hub``), which is downloaded, a ``Source``, or a
            ``PreTrainedModel``.
        tokenizer: the tokenizer of a ``PreTrainedModel``.

    Raises:
        SourceError: there is nothing at the path, or nothing that a source here can read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source if hasattr(source, "planes") else _family(_IN_MEMORY)(source, tokenizer)
    name = hub.local(os.fspath(source))
    if is_url(name):
        raise SourceError(f"{name}: models are made of files on disk and of those on the hub; download it first")
    if wrong := what_is_wrong(name):
        raise SourceError(f"{name}: {wrong}")
    # Before the sources are asked, as several of these formats are ZIP archives, which one source reads.
    if os.path.isfile(name) and (wrong := recognize(name)):
        raise SourceError(f"{name}: {wrong}")
    for target in BUILTIN.values():
        family = _family(target)
        if family.matches(name):
            return family(name)
    if wrong := recognize(name) or not_a_model(name):
        raise SourceError(f"{name}: {wrong}")
    raise SourceError(f"{name}: not a source; known: {', '.join(BUILTIN)} (a directory with config.json and weights)")


def _family(target: str) -> Any:
    module, attribute = target.split(":")
    return vars(import_module(module))[attribute]
