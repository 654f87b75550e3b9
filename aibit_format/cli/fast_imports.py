"""Skips imports that running a model on one device never uses, for a faster start.

Importing transformers spends half of its time on compilers, distributed tensors and statistics that generation does
not use. After ``start``, stand-ins take the place of these modules: every attribute of a stand-in is a class without
instances. Only the command line does this, because its process runs one model and ends; programs that import this
package get the real modules. ``AIBIT_FULL_IMPORTS=1`` in the environment turns it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..hf.compat import SLOW_TO_IMPORT

# Packages that are not imported, nor anything in them.
UNUSED = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.algorithms",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    SLOW_TO_IMPORT,
    "pandas",
    "scipy",
    "sklearn",
    "torchao",  # whose own imports need what is left out above; transformers imports it where it is installed
)


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return a decorated function unchanged; this decorator works with and without arguments."""
    return function if callable(function) else _as_it_is


# Decorators of these packages that are called all the same; without a compiler, they leave functions unchanged.
_CALLED: dict[str, dict[str, Any]] = {"torch._dynamo": {"disable": _as_it_is, "allow_in_graph": _as_it_is}}


class _StandIn(ModuleType):
    """A module in which every name stands for a class whose constructor takes any arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _CALLED.get(self.__name__, {}).get(name) or type(name, (), {"__init__": _take_anything})
        setattr(self, name, found)
        return found


def _take_anything(self: Any, *_: Any, **__: Any) -> None:
    pass


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        unused = any(fullname == name or fullname.startswith(f"{name}.") for name in UNUSED)
        return ModuleSpec(fullname, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def start() -> Callable[[], None] | None:
    """Import stand-ins for ``UNUSED`` from now on.

    Returns a function that undoes this; ``None`` if nothing was done, as torch is already imported or it is turned off.
    """
    if "torch" in sys.modules or os.environ.get("AIBIT_FULL_IMPORTS"):
        return None
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    import torch

    compiled, torch.compile = torch.compile, _as_it_is  # which bitsandbytes applies to its kernels on import

    def undo() -> None:
        sys.meta_path.remove(finder)
        torch.compile = compiled
        for name in [name for name, module in sys.modules.items() if _depends(name, module)]:
            module, (package, _, attribute) = sys.modules.pop(name), name.rpartition(".")
            around = sys.modules.get(package)
            if around is not None and vars(around).get(attribute) is module:  # import ... as takes it from there
                delattr(around, attribute)

    return undo


def _depends(name: str, module: ModuleType | None) -> bool:
    return isinstance(module, _StandIn) or name.partition(".")[0] in ("transformers", "bitsandbytes", "accelerate")
