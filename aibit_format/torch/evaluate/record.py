"""Measures how well a file does what its source does, and writes that into its metadata, where it stays."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from ...errors import LoadError
from ...file.rewrite import edit
from .judge import OnProgress, Question, judge, reference_logits
from .mapped import common
from .perplexity import Quality

_DIGITS = 6


def record(
    path: str, out: str, source: str, question: Question, overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[Quality, list[str]]:  # fmt: skip
    """Judge the model at ``path`` on a text against the one at ``source``, and write a copy that says so to ``out``.

    Returns the figures, and the paths of the copy.

    Raises:
        LoadError: one of them predicts no next token, or has other tokens.
        WriteError: ``out`` exists, and ``overwrite`` is off.
    """
    question = replace(question, tokens_of=common([path]))
    with reference_logits(source, question, on_progress=on_progress) as reference:
        (verdict,) = judge([path], question, reference, on_progress)
    found = verdict.quality
    if found is None or question.text is None:
        raise LoadError("a file says how well it predicts a text: give one")
    values = _metadata(found, question.text, verdict.context)
    return found, edit(path, out, metadata=values, overwrite=overwrite)


def _metadata(found: Quality, text: str, context: int) -> dict[str, Any]:
    """Return the keys ``quality.*`` of the specification: figures to six digits, and the digest of the text."""
    apart = found.divergence
    figures: dict[str, float | None] = {
        "perplexity": found.perplexity, "reference_perplexity": found.reference_perplexity,
    }  # fmt: skip
    if apart is not None:
        figures |= {
            "kl_mean": apart.mean, "kl_mean_error": apart.mean_error, "kl_median": apart.median,
            "kl_99": apart.percentile_99, "same_first": apart.same_first,
        }  # fmt: skip
    rounded = {key: float(f"{value:.{_DIGITS}g}") for key, value in figures.items() if value is not None}
    about = {
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "tokens": found.tokens, "context": context,
    }  # fmt: skip
    return {f"quality.{key}": value for key, value in (about | rounded).items()}
