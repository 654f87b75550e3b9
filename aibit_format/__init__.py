"""aibit: one file that holds a quantized language model, mapped and running.

The layers, lowest first; each imports only from those before it:

    errors, dtypes, layout     codes and messages; element types; the bytes
    digest, names, signatures  checksums; which names a file may hold; what is signed, and checking it
    schemes/                   one file a scheme: values to planes and back, in numpy
    metadata, placement        typed values; where every byte lies
    manifest, frontmatter      a file's tables as values; making them from bytes
    validate                   every rule about them
    draft                      planning a file: all of it but its digests
    storage, remote, prefetch  one mapping, ranges of a URL; reading ahead
    still                      reading what others may change
    partial                    files that get their name when they are whole
    reader, writer             views of a mapping; stream, sync, name
    stream                     stretches of a file to a device, by several threads
    shards, sharding, rewrite  a model in several files, read and written; files from files
    stream                     stretches of a file to a device, by several threads
    peers, difference          processes that write together; what differs between two models
    signing                    keys; a signed copy, or a signature beside a file
    sources/                   one file a foreign format in
    skeleton, engine, measure  what a model's modules say of its tensors; encoding at speed; the error made
    vocabulary                 token ids against the embedding's rows
    recipe, conversion         which tensor gets which scheme; doing it
    exports/                   one file a foreign format out
    torch/                     tensors, bitsandbytes modules, models
    cli/                       one file a verb

Nothing here imports torch until something that needs it is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .container.signatures import Signature
    from .convert.convert import Report, convert
    from .errors import AibitError, FormatError
    from .file.diff import Difference, diff
    from .file.reader import File
    from .file.rewrite import edit, merge, split
    from .file.sharded_reader import open
    from .file.signing import new_key, sign, sign_detached
    from .formats.exports import export
    from .torch.load.model import load, load_model
    from .torch.tokenizer import load_tokenizer

_WHERE = {
    "AibitError": "errors",
    "Difference": "file.diff",
    "File": "file.reader",
    "FormatError": "errors",
    "Report": "convert.convert",
    "Signature": "container.signatures",
    "convert": "convert.convert",
    "diff": "file.diff",
    "edit": "file.rewrite",
    "export": "formats.exports",
    "load": "torch.load.model",
    "load_model": "torch.load.model",
    "load_tokenizer": "torch.tokenizer",
    "merge": "file.rewrite",
    "new_key": "file.signing",
    "open": "file.sharded_reader",
    "sign": "file.signing",
    "sign_detached": "file.signing",
    "split": "file.rewrite",
}

__all__ = [
    "AibitError", "Difference", "File", "FormatError", "Report", "Signature", "__version__",
    "convert", "diff", "edit", "export", "load", "load_model", "load_tokenizer", "merge", "new_key", "open", "sign",
    "sign_detached", "split",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = vars(import_module(f"{__name__}.{module}"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Keep public functions from being hidden by folders of their name.

        Importing ``aibit_format.convert.recipe`` makes Python set the attribute ``convert`` of this package to the
        folder. The attribute is the function; the folder's modules are imported with ``from``.
        """
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
