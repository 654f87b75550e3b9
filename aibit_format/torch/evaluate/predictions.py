"""Predicts each token of a text from those before it, in windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LoadError

Predictions = Iterator[tuple[torch.Tensor, torch.Tensor]]  # of each window: i64 [n] tokens, [n, vocabulary] logits


@dataclass(frozen=True)
class Text:
    """Holds a text's tokens, i64 [n], and how it is cut: ``context`` tokens a window, ``stride`` from one to the next.

    Of each window those tokens are predicted that no window before has. With half of ``context`` as the stride, its
    default, all but the first have half of it before them.

    Raises:
        LoadError: there is nothing to predict.
    """

    ids: torch.Tensor
    context: int = 512
    stride: int = 0  # 0: half of ``context``

    def __post_init__(self) -> None:
        if not self.stride:
            object.__setattr__(self, "stride", max(1, self.context // 2))
        if len(self.ids) < 2 or self.context < 2 or not 1 <= self.stride <= self.context:
            raise LoadError(
                f"{len(self.ids)} tokens in windows of {self.context}, {self.stride} apart: nothing to predict"
            )

    @property
    def windows(self) -> list[tuple[int, int, int]]:
        """Return (start, first, end) of each window: the tokens from ``first`` on are predicted in it.

        The first token of a window has nothing before it, so it is not predicted unless another window does.
        """
        found, scored = [], 0
        for start in range(0, len(self.ids), self.stride):
            end = min(start + self.context, len(self.ids))
            first = max(scored, start + 1)
            if first < end:
                found.append((start, first, end))
            scored = end
            if end == len(self.ids):
                break
        return found

    @property
    def predicted(self) -> int:
        """Return how many tokens are predicted."""
        return sum(end - first for _, first, end in self.windows)


def predict(model: Any, text: Text) -> Predictions:
    """Yield what a causal model of transformers predicts in each window, on the model's device."""
    ids = text.ids.to(model.device)
    for start, first, end in text.windows:
        count = end - first
        with torch.inference_mode():
            result = model(ids[None, start:end], use_cache=False, logits_to_keep=count + 1)
        yield ids[first:end], result.logits[0, -count - 1 : -1]
