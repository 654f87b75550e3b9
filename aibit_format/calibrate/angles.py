"""Measures the angle between what goes into a block of a model and what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .blocks import Block


class Angle:
    """Add up the angles of tokens, acos of the cosine of the two vectors as a share of pi."""

    def __init__(self) -> None:
        self._sum, self._count, self._known = 0.0, 0, True

    def add(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """Add those between the first argument and the first output of a block, [..., K].

        A block whose first argument and output are no tensors of one shape has no angle.
        """
        before = args[0] if args else kwargs.get("hidden_states")
        after = output[0] if isinstance(output, (tuple, list)) and output else output
        if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.shape == after.shape):
            self._known = False
            return
        cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), -1).clamp(-1, 1)
        self._sum += float(cosine.acos().sum()) / math.pi
        self._count += cosine.numel()

    @property
    def mean(self) -> float | None:
        """Return the mean over tokens; ``None`` if there is none, or it is not a number."""
        mean = self._sum / self._count if self._known and self._count else math.nan
        return mean if math.isfinite(mean) else None


@contextmanager
def measuring(blocks: Mapping[str, Block]) -> Iterator[dict[str, Angle]]:
    """Measure the angles of blocks whenever they run while the context is open."""
    found = {name: Angle() for name in blocks}
    with ExitStack() as stack:
        for name, block in blocks.items():
            add = found[name].add
            hook = lambda _, args, kwargs, output, add=add: add(args, kwargs, output)  # noqa: E731
            stack.callback(block.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield found
