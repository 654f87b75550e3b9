"""Listens to the layers of a model: every input that is multiplied with a weight is added to the weight's sums.

Linear and Conv1D layers tell by a hook. Experts of one fused weight are multiplied inside their module's code, so its
products are watched while it runs, and the expert is known by where its matrix begins in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..hf.meta_model import ParameterSpec
from .sums import Rows, Sums

# Functions of two matrices; the second is the weight.
_PRODUCTS = frozenset({
    nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.Tensor.mm, torch.Tensor.bmm,
})  # fmt: skip


def sums_of(
    specs: Mapping[str, ParameterSpec], names: Collection[str], hessians: Callable[[str], bool], device: Any
) -> dict[str, Sums]:
    """Return empty sums for those of the named parameters that inputs are multiplied with."""
    found = {}
    for name in names:
        spec = specs[name]
        if spec.takes_inputs:
            groups = spec.shape[0] if spec.role == "experts" else None
            found[name] = Sums(name, spec.columns, groups, hessians(name), device)
    return found


@contextmanager
def listening(model: nn.Module, specs: Mapping[str, ParameterSpec], sums: Mapping[str, Sums]) -> Iterator[None]:
    """Add to ``sums`` what goes into their weights while the context is open."""
    latest = _Latest()
    with ExitStack() as stack:
        experts: dict[str, list[str]] = {}
        for name in sums:
            owner, _, leaf = name.rpartition(".")
            if specs[name].role == "experts":
                experts.setdefault(owner, []).append(leaf)
                continue
            hook = _hook(sums[name], latest)
            handle = model.get_submodule(owner).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for owner, leaves in experts.items():
            module = model.get_submodule(owner)
            watched = {leaf: sums[f"{owner}.{leaf}"] for leaf in leaves}
            stack.enter_context(replaced_forward(module, _watching(module, watched, latest)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else while the context is open."""
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


class _Latest:
    """Keep the sums of the latest inputs: queries, keys and values have the same, and so have gate and up."""

    def __init__(self) -> None:
        self._x: torch.Tensor | None = None
        self._version = -1
        self._rows: Rows | None = None

    def rows(self, x: torch.Tensor) -> Rows:
        if self._rows is None or self._x is not x or self._version != x._version:  # it may have been written to
            self._x, self._version, self._rows = x, x._version, Rows(x.reshape(-1, x.shape[-1]))
        return self._rows


def _hook(sums: Sums, latest: _Latest) -> Callable[..., None]:
    def add(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if x.numel():
            sums.add(latest.rows(x))

    return add


def _watching(module: nn.Module, watched: Mapping[str, Sums], latest: _Latest) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if (routed := _routed(args, kwargs)) is not None:
            for sums in watched.values():
                sums.route(*routed)
        with _Products({getattr(module, leaf): sums for leaf, sums in watched.items()}, latest):
            return forward(*args, **kwargs)

    return run


def _routed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return which experts tokens go to, and the weights of their outputs, where a module of experts is told so."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
    for experts, weights in pairwise(tensors):
        if not experts.is_floating_point() and weights.is_floating_point() and experts.shape == weights.shape:
            return experts, weights
    return None


class _Products(TorchFunctionMode):
    """Watch products of inputs with matrices of fused weights, each [experts, ...]."""

    def __init__(self, weights: Mapping[torch.Tensor, Sums], latest: _Latest) -> None:
        super().__init__()
        self._weights, self._latest = weights, latest

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], torch.Tensor):
            self._add(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _add(self, x: torch.Tensor, factor: torch.Tensor) -> None:
        for weight, sums in self._weights.items():
            first = (factor.data_ptr() - weight.data_ptr()) / weight[0].nbytes
            if not 0 <= first < len(weight) or first % 1 or not x.numel():
                continue
            if factor.ndim == 2:
                sums.add(self._latest.rows(x), int(first))
            else:  # a batch for each expert, with zeros for the tokens that are not routed to it
                for expert, rows in enumerate(x):
                    if len(routed := rows[rows.any(-1)]):
                        sums.add(Rows(routed), int(first) + expert)
