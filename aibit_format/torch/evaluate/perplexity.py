"""Measures how well a model predicts a text, and how far its predictions are from those of its original.

Perplexity is the exponential of the mean negative log-likelihood of a text's tokens. Between two models it says little,
as errors of both signs cancel; so predictions are compared token by token: the Kullback-Leibler divergence of the model
from the reference, sum of p_ref (log p_ref - log p) over the vocabulary, in nats, and whether both would have taken the
same token. llama.cpp's ``llama-perplexity`` measures the same three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import LoadError
from .mapped import Mapped
from .predictions import Text, predict
from .saved_logits import SavedLogits

_ROWS = 64  # predictions that are looked at at once: of 150,000 tokens they take 38 MB in float32


@dataclass(frozen=True)
class Divergence:
    """Says how far predictions are from the reference's, in nats a token, and how often the first tokens agree.

    Standard errors are those of independent tokens.
    """

    mean: float
    mean_error: float
    median: float
    percentile_99: float
    largest: float
    same_first: float  # share of tokens
    same_first_error: float


@dataclass(frozen=True)
class Quality:
    """Holds the figures of one text."""

    tokens: int  # that were predicted
    loss: float  # mean negative log-likelihood, nats
    loss_error: float  # its standard error
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
    model: Any, text: Text, reference: Any = None, on_progress: Callable[[int, int], None] | None = None
) -> Quality:
    """Predict each token of a text from those before it.

    Args:
        model: a causal one of transformers.
        text: its tokens, and how they are cut into windows.
        reference: a model with the same vocabulary, or the ``SavedLogits`` of one, or those of a model with a larger
            one (``Mapped``).
        on_progress: called with the tokens that were predicted, and of how many.

    Raises:
        LoadError: the models have different vocabularies, or the saved predictions are those of another text.
    """
    scores, done, total = [], 0, text.predicted
    expected = None
    if reference is not None:
        expected = reference.predict(text) if isinstance(reference, (SavedLogits, Mapped)) else predict(reference, text)
    for targets, logits in predict(model, text):
        truth = None if expected is None else next(expected)[1]
        if truth is not None and truth.shape != logits.shape:
            raise LoadError(f"vocabularies of {logits.shape[1]} and, in the reference, {truth.shape[1]} tokens")
        for i in range(0, len(targets), _ROWS):
            rows = slice(i, i + _ROWS)
            with torch.inference_mode():
                scores.append(_scores(targets[rows], logits[rows], None if truth is None else truth[rows]))
        done += len(targets)
        if on_progress is not None:
            on_progress(done, total)
    loss, *others = torch.cat(scores, 1).double()
    if not others:
        return Quality(len(loss), float(loss.mean()), _standard_error(loss))
    theirs, apart, same = others
    apart = apart.clamp_(min=0)  # rounding may take it below
    median, percentile_99 = np.quantile(apart.numpy(force=True), (0.5, 0.99))
    divergence = Divergence(
        float(apart.mean()), _standard_error(apart), float(median), float(percentile_99), float(apart.max()),
        float(same.mean()), _standard_error(same),
    )  # fmt: skip
    return Quality(len(loss), float(loss.mean()), _standard_error(loss), float(theirs.mean()), divergence)


def _standard_error(values: torch.Tensor) -> float:
    """Return the standard error of a mean, as if tokens were independent."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _scores(targets: torch.Tensor, logits: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
    """Return f32 [1 or 4, n]: losses; with the reference's logits also its losses, divergences, and top-1 agreement."""
    ours = logits.float().log_softmax(1)
    losses = -ours.gather(1, targets[:, None])[:, 0]
    if expected is None:
        return losses[None]
    truth = expected.to(ours.device).float().log_softmax(1)
    theirs, same = -truth.gather(1, targets[:, None])[:, 0], truth.argmax(1) == ours.argmax(1)
    return torch.stack([losses, theirs, (truth.exp() * (truth - ours)).sum(1), same.float()])
