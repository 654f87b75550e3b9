"""Refuses to write to weights where the system has no memory for copies of their pages.

Weights of a loaded model lie in pages that are copied when they are written to. Where overcommitting is switched off
(``vm.overcommit_memory=2``), the system promises memory for each of them beforehand, and refuses what is more than it
has. The model is loaded over read-only pages then, and torch, which knows no such memory, is told here: a write would
end the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, LoadError
from ..file.sharded_reader import Opened

WHAT = (
    "the weights are read-only here: the system has no memory for copies of the pages that are written to "
    "(vm.overcommit_memory=2). Clone the tensor first, or load the model with trainable=True for floating-point weights"
)
_DUNDER = frozenset(f"__i{name}__" for name in (
    "add", "and", "div", "floordiv", "lshift", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor",
)) | {"__setitem__"}  # fmt: skip
# Names of functions that end as those that write do, and change no value.
_HARMLESS = frozenset({"requires_grad_", "detach_", "share_memory_", "rename_"})


def open_writable(file: Opened) -> tuple[Opened, bool]:
    """Return the file in memory that tensors may write to; or the file itself and False where there is none."""
    try:
        return file.writable(), True
    except FormatError as error:
        if error.code != "AIB-E803":
            raise
        return file, False


class ReadOnly(torch.Tensor):
    """A tensor, and every view of it, that raises a LoadError when a function of torch is to write to it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = [kwargs.get("out"), *(args[:1] if _writes(func) else ())]
        if any(isinstance(each, ReadOnly) for each in _flat(written)):
            raise LoadError(f"{getattr(func, '__name__', func)}: {WHAT}")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if isinstance(result, np.ndarray):
            result.flags.writeable = False
            return result
        storages = {_storage(each) for each in _flat(args) if isinstance(each, ReadOnly)}
        return _wrapped(result, storages)


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in _DUNDER or (name.endswith("_") and not name.endswith("__") and name not in _HARMLESS)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _storage(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0


def _wrapped(result: Any, storages: set[int]) -> Any:
    """Return a result with those tensors in it wrapped that are views of read-only memory."""
    if type(result) is torch.Tensor and _storage(result) in storages - {0}:
        return result.as_subclass(ReadOnly)
    if type(result) in (list, tuple):
        return type(result)(_wrapped(each, storages) for each in result)
    return result
