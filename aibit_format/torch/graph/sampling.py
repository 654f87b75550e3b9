"""Chooses the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """Says how a token is chosen from logits: the likeliest one, or at random from the likeliest."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.do_sample and not (self.temperature > 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: "
                "expected above 0, at least 0, and above 0 up to 1"
            )

    def choose(self, logits: torch.Tensor) -> int:
        """Return an id, of logits [vocabulary]."""
        if not self.do_sample:
            return int(logits.argmax())
        scores = logits.float() / self.temperature
        if self.top_k:
            scores[scores < scores.topk(min(self.top_k, len(scores))).values[-1]] = float("-inf")
        probabilities = scores.softmax(-1)
        if self.top_p < 1:
            likely, places = probabilities.sort(descending=True)
            likely[likely.cumsum(-1) - likely >= self.top_p] = 0
            return int(places[torch.multinomial(likely, 1)])
        return int(torch.multinomial(probabilities, 1))
