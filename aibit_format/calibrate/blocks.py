"""Runs a model a block at a time: all samples through one block, then all through the next.

Nothing is known of an architecture. The whole model's forward runs for each sample and each block, but blocks that are
done only return what they returned before, and the forward ends in the first block that is not: so that block gets
exactly the arguments that the model's own code gives it. Of the blocks before, only the latest of each list of blocks
returns its values; the others return NaN. A block whose arguments contain one depends on more than the block before it,
and the model cannot be run like this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .angles import Angle
from .hooks import replaced_forward
from .trees import NotPlainError, flatten, has_nan, mapped, unflatten


class NotByBlocksError(Exception):
    """Raised where a model cannot be run a block at a time; says why."""


class _Reached(BaseException):  # not an Exception, which a model's code may catch
    """Carries the block that a forward has come to, or what it has returned."""

    def __init__(self, what: Any) -> None:
        self.what = what


@dataclass(frozen=True)
class Block:
    """Name a block of a model, and the list that it is in."""

    name: str
    list: str
    module: nn.Module


def blocks_of(model: nn.Module) -> dict[str, Block]:
    """Return the blocks of a model by name: the modules with others inside, in lists that are in no block.

    Lists of lists (Funnel) are taken apart.
    """
    found, lists = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in lists):
            continue
        if any(isinstance(child, nn.ModuleList) for child in module.children()):
            continue
        lists.append(name)
        for key, child in module.named_children():
            if any(True for _ in child.children()):
                found[f"{name}.{key}"] = Block(f"{name}.{key}", name, child)
    return found


@dataclass(frozen=True)
class Output:
    """Hold what a block returned for a sample: its tensors, and the form that they are in."""

    form: Any
    tensors: Sequence[torch.Tensor]

    @property
    def value(self) -> Any:
        """Return it as the block did."""
        return unflatten(self.form, iter(self.tensors))

    @cached_property
    def unknown(self) -> Output:
        """Return the same with NaN for all floating-point values."""
        return Output(self.form, mapped(self.tensors, lambda each: torch.full_like(each, float("nan"))))

    @property
    def is_unknown(self) -> bool:
        """Tell whether all floating-point values are NaN."""
        return all(bool(torch.isnan(each).all()) for each in self.tensors if each.is_floating_point())


class Forward:
    """Run a model's forward up to the first block that is not done.

    Args:
        model: with the weights of everything outside of blocks.
        run: calls the model with one sample.
        blocks: by name.
        latest: returns what the latest block of a list, by the list's name, has returned for a sample.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[Any], None], blocks: Mapping[str, Block],
        latest: Callable[[str, Any], Output],
    ) -> None:  # fmt: skip
        self._model, self._run, self._blocks, self._latest = model, run, blocks, latest
        self.done: list[str] = []

    @contextmanager
    def _replaced(self, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, forward in forwards.items():
                stack.enter_context(replaced_forward(self._blocks[name].module, forward))
            yield

    def following(self, sample: Any) -> str | None:
        """Return the name of the block that follows those that are done; ``None`` if there is none."""

        def reach(name: str) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                raise _Reached(name)

            return forward

        left = {name: reach(name) for name in self._blocks if name not in self.done}
        found = self._through(sample, left)
        return None if found is None else found.what

    def output(self, name: str, sample: Any, angle: Angle | None = None) -> Output:
        """Return what a block, the one that follows, returns for a sample, and add to the angle of the block.

        Raises:
            NotByBlocksError: it depends on more than what the block before has returned, or returns what is not kept.
        """
        module = self._blocks[name].module
        forward = module.forward

        def reach(*args: Any, **kwargs: Any) -> Any:
            if has_nan((args, kwargs)):
                raise NotByBlocksError(f"{name} depends on more than the block before it")
            returned = forward(*args, **kwargs)
            if angle is not None:
                angle.add(args, kwargs, returned)
            raise _Reached(returned)

        found = self._through(sample, {name: reach})
        if found is None:
            raise NotByBlocksError(f"{name} is not run for every sample")
        try:
            tensors, form = flatten(found.what)
        except NotPlainError as error:
            raise NotByBlocksError(f"{name} returns a {error}") from error
        if any(each.requires_grad for each in tensors) or not tensors:
            raise NotByBlocksError(f"{name} returns no plain tensors")
        return Output(form, tensors)

    def rest(self, sample: Any) -> None:
        """Run all that is outside of blocks, the last ones of which return what they returned before."""
        self._through(sample, {})

    def _through(self, sample: Any, ends: Mapping[str, Callable[..., Any]]) -> _Reached | None:
        called: list[str] = []
        last = {self._blocks[name].list: name for name in self.done}
        outputs = {of: self._latest(of, sample) for of in last}

        def replay(name: str) -> Callable[..., Any]:
            found = outputs[self._blocks[name].list]
            returned = found if last[self._blocks[name].list] == name else found.unknown

            def forward(*args: Any, **kwargs: Any) -> Any:
                called.append(name)
                return returned.value

            return forward

        reached = None
        with self._replaced({name: replay(name) for name in self.done} | dict(ends)):
            try:
                self._run(sample)
            except _Reached as error:
                reached = error
        if not all(found.unknown.is_unknown for found in outputs.values() if "unknown" in vars(found)):
            raise NotByBlocksError("it writes to what its blocks have returned")
        if called != self.done:
            raise NotByBlocksError("its blocks are not run once each, in one order")
        return reached
