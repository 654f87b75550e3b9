"""Measures how well a model predicts a text, and how far its predictions are from those of its original.

Perplexity is the exponential of the mean negative log-likelihood of a text's tokens. Between two models it says little,
as errors of both signs cancel; so predictions are compared token by token: the Kullback-Leibler divergence of the model
from the reference, sum of p_ref (log p_ref - log p) over the vocabulary, in nats, and whether both would have taken the
same token. llama.cpp's ``llama-perplexity`` measures the same three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import LoadError

_ROWS = 64  # predictions that are looked at at once: of 150,000 tokens they take 38 MB in float32

OnProgress = Callable[[int, int], None]  # tokens that were predicted, of how many


@dataclass(frozen=True)
class Divergence:
    """Says how far predictions are from the reference's, in nats a token, and how often the first tokens agree."""

    mean: float
    median: float
    percentile_99: float
    largest: float
    same_first: float  # share of tokens


@dataclass(frozen=True)
class Quality:
    """Holds the figures of one text."""

    tokens: int  # that were predicted
    loss: float  # mean negative log-likelihood, nats
    loss_error: float  # its standard error, as if tokens were independent
    reference_loss: float | None = None
    divergence: Divergence | None = None

    @property
    def perplexity(self) -> float:
        """Return the exponential of the loss."""
        return math.exp(self.loss)

    @property
    def reference_perplexity(self) -> float | None:
        """Return the exponential of the reference's loss, if there is a reference."""
        return None if self.reference_loss is None else math.exp(self.reference_loss)


def evaluate(
    model: Any, ids: torch.Tensor, context: int = 512, stride: int | None = None, reference: Any = None,
    on_progress: OnProgress | None = None,
) -> Quality:  # fmt: skip
    """Predict each token of a text from those before it.

    Args:
        model: a causal one of transformers.
        ids: i64 [n], the text.
        context: tokens that the model sees at once.
        stride: tokens from one window to the next; of each, those are scored that no window before has. With the
            default, half of ``context``, all but the first ones have half of it before them.
        reference: a model with the same vocabulary.

    Raises:
        LoadError: the text has fewer than two tokens, or the models have different vocabularies.
    """
    stride = stride or max(1, context // 2)
    if len(ids) < 2 or context < 2 or not 1 <= stride <= context:
        raise LoadError(f"{len(ids)} tokens in windows of {context}, {stride} apart: nothing to predict")
    ids, scores = ids.to(model.device), []
    steps = list(_windows(len(ids), context, stride))
    total, done = sum(end - first for _, first, end in steps), 0
    with torch.inference_mode():
        for start, first, end in steps:
            targets = ids[first:end]
            logits = _predictions(model, ids[start:end], end - first)
            expected = None if reference is None else _predictions(reference, ids[start:end], end - first)
            if expected is not None and expected.shape != logits.shape:
                raise LoadError(f"vocabularies of {logits.shape[1]} and, in the reference, {expected.shape[1]} tokens")
            for i in range(0, len(targets), _ROWS):
                rows = slice(i, i + _ROWS)
                scores.append(_scores(targets[rows], logits[rows], None if expected is None else expected[rows]))
            done += end - first
            if on_progress is not None:
                on_progress(done, total)
    loss, *others = torch.cat(scores, 1).double()
    error = float(loss.std() / math.sqrt(len(loss))) if len(loss) > 1 else 0.0
    if not others:
        return Quality(len(loss), float(loss.mean()), error)
    theirs, apart, same = others
    apart = apart.clamp_(min=0).numpy(force=True)  # rounding may take it below
    median, percentile_99 = np.quantile(apart, (0.5, 0.99))
    divergence = Divergence(
        float(apart.mean()), float(median), float(percentile_99), float(apart.max()), float(same.mean())
    )
    return Quality(len(loss), float(loss.mean()), error, float(theirs.mean()), divergence)


def _scores(targets: torch.Tensor, logits: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
    """Return f32 [1 or 4, n]: losses; with the reference's logits also its losses, divergences, and top-1 agreement."""
    ours = logits.float().log_softmax(1)
    losses = -ours.gather(1, targets[:, None])[:, 0]
    if expected is None:
        return losses[None]
    truth = expected.to(ours.device).float().log_softmax(1)
    theirs, same = -truth.gather(1, targets[:, None])[:, 0], truth.argmax(1) == ours.argmax(1)
    return torch.stack([losses, theirs, (truth.exp() * (truth - ours)).sum(1), same.float()])


def _windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first, end) of each window of ``count`` tokens: those from ``first`` on are predicted in it.

    The first token of a window has nothing before it, so it is not predicted unless another window does.
    """
    scored = 0
    for start in range(0, count, stride):
        end = min(start + context, count)
        first = max(scored, start + 1)
        if first < end:
            yield start, first, end
        scored = end
        if end == count:
            return


def _predictions(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return [count, vocabulary]: logits of the last ``count`` tokens, each from those before it."""
    result = model(ids[None].to(model.device), use_cache=False, logits_to_keep=count + 1)
    return result.logits[0, -count - 1 : -1]
