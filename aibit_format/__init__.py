"""aibit: one file that holds a quantized language model, mapped and running.

The layers, lowest first. Each imports only from those above it in this list; ``tests/test_map.py`` compares the list
with the import contract in ``pyproject.toml``.

    errors, _version    name what can go wrong, with a code each; state the version
    dtypes              describe element types, and convert bf16 and fp8 for numpy
    native, interop     run the compiled encoders, decoders and products; turn numpy's arrays into torch's tensors
    schemes             turn a tensor's values into planes of bytes and back: one file a scheme, numpy alone
    io                  get and put bytes: mappings, URLs, leases, reading ahead, files that appear whole
    container           define the bytes of a file: records, checksums, placement, rules; no file is opened here
    file                read, write, sign, cut, join, edit and compare whole files
    numpy               offer safetensors' functions for numpy
    graph               define stored graphs, and check them against a file
    hf                  tell what a transformers config and an empty model say of tensors
    formats             read and write what other tools use: one folder a format, its way in beside its way out
    calibrate           take statistics of what goes into a model's layers
    transform           rewrite a model: so that less is lost in quantizing, or with a smaller vocabulary
    convert             make a file from a source: recipe, binding, encoding, error figures
    torch               build models over mapped pages, compute with them, measure them
    integrations        put files where other libraries look for models
    cli                 parse a command's arguments, call a function, print its result: one file a verb

Nothing here imports torch until something that needs it is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .calibrate.calibrate import calibrate
    from .container.signatures import Signature
    from .convert.convert import Report, convert
    from .convert.prune import prune
    from .convert.trim import trim
    from .errors import AibitError, FormatError
    from .file.bundle import sign_bundle
    from .file.diff import Difference, diff
    from .file.reader import File
    from .file.rewrite import edit, merge, split
    from .file.sharded_reader import open
    from .file.signing import new_key, sign, sign_detached
    from .formats.exports import export
    from .integrations.card import card
    from .integrations.push import push
    from .integrations.transformers import register, unregister
    from .torch.evaluate.search import Target, search
    from .torch.graph.model import load_graph
    from .torch.load.model import load, load_model
    from .torch.record.store import add_graph
    from .torch.tokenizer import load_tokenizer

_WHERE = {
    "AibitError": "errors",
    "Difference": "file.diff",
    "File": "file.reader",
    "FormatError": "errors",
    "Report": "convert.convert",
    "Signature": "container.signatures",
    "Target": "torch.evaluate.search",
    "add_graph": "torch.record.store",
    "calibrate": "calibrate.calibrate",
    "card": "integrations.card",
    "convert": "convert.convert",
    "diff": "file.diff",
    "edit": "file.rewrite",
    "export": "formats.exports",
    "load": "torch.load.model",
    "load_graph": "torch.graph.model",
    "load_model": "torch.load.model",
    "load_tokenizer": "torch.tokenizer",
    "merge": "file.rewrite",
    "new_key": "file.signing",
    "open": "file.sharded_reader",
    "prune": "convert.prune",
    "push": "integrations.push",
    "register": "integrations.transformers",
    "search": "torch.evaluate.search",
    "sign": "file.signing",
    "sign_bundle": "file.bundle",
    "sign_detached": "file.signing",
    "split": "file.rewrite",
    "trim": "convert.trim",
    "unregister": "integrations.transformers",
}

__all__ = [
    "AibitError", "Difference", "File", "FormatError", "Report", "Signature", "Target", "__version__",
    "add_graph", "calibrate", "card", "convert", "diff", "edit", "export", "load", "load_graph", "load_model",
    "load_tokenizer", "merge", "new_key", "open", "prune", "push", "register", "search", "sign", "sign_bundle",
    "sign_detached", "split", "trim", "unregister",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .errors import IncompatibleLibraryError, MissingPackageError

    try:
        value = vars(import_module(f"{__name__}.{module}"))[name]
    except (MissingPackageError, IncompatibleLibraryError) as error:
        return _missing(name, error)
    globals()[name] = value
    return value


def _missing(name: str, error: Exception) -> Any:
    """Return what stands for a function whose package is not installed: calling it raises such an error."""

    def missing(*_: Any, **__: Any) -> Any:
        raise error

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = str(error)
    return missing


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
