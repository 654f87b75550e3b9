"""Takes what a block of a model returns apart into tensors and the form they are in, and puts it together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, str)
TENSOR = "tensor"


class NotPlainError(Exception):
    """Raised for a value that is no tensor, number or text, nor a list or tuple of such."""


def flatten(value: Any) -> tuple[list[torch.Tensor], Any]:
    """Return the tensors in a value, in order, and what JSON can hold of the rest.

    Raises:
        NotPlainError: there is something else in it.
    """
    if isinstance(value, torch.Tensor):
        return [value], {TENSOR: True}
    if type(value) in (list, tuple):
        parts = [flatten(each) for each in value]
        return [tensor for tensors, _ in parts for tensor in tensors], {
            type(value).__name__: [form for _, form in parts]
        }
    if type(value) in PLAIN:
        return [], {"plain": value}
    raise NotPlainError(type(value).__name__)


def unflatten(form: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Put a value together from its tensors."""
    if TENSOR in form:
        return next(tensors)
    if "plain" in form:
        return form["plain"]
    (kind, parts), *_ = form.items()
    return {"list": list, "tuple": tuple}[kind](unflatten(each, tensors) for each in parts)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors in arguments: in lists, tuples and mappings, but in nothing else."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in tensors_in(each)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def has_nan(value: Any) -> bool:
    """Tell whether a tensor in a value has a NaN."""
    return any(each.is_floating_point() and bool(torch.isnan(each).any()) for each in tensors_in(value))


def mapped(tensors: Sequence[torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors, those of floating-point values changed."""
    return [change(each) if each.is_floating_point() else each for each in tensors]
