"""Judges models on a text, one at a time in memory: quality, distance from a reference, time, memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import LoadError
from ...hf.context import context_of
from ...io.scratch import temporary_folder
from ..tokenizer import load_tokenizer
from . import timing
from .mapped import Mapped, kept_of, mapped
from .memory import PeakMemory
from .operands import operand, stored_bytes
from .perplexity import Quality, evaluate
from .predictions import Text
from .saved_logits import SavedLogits, save_logits
from .tasks import Scores, Tasks

_CONTEXT = 512
_PROMPT, _NEW_TOKENS = 128, 16  # of the timing; the prompt at most half of what the model takes

OnProgress = Callable[[int, int, str], None]  # tokens that were predicted, of how many, by which model


@dataclass(frozen=True)
class Speed:
    """Holds times in seconds: of loading, of a prompt of so many tokens, and of each token after it (the median)."""

    load_seconds: float
    prompt: int
    first_token_seconds: float
    token_seconds: float


@dataclass(frozen=True)
class Verdict:
    """Holds all that was measured of one model, in windows of ``context`` tokens, ``stride`` apart.

    Without a text there is no ``quality``, and no window. ``memory`` are resident bytes at the peak; None if not known.
    """

    file: str
    bytes: int
    context: int
    stride: int
    quality: Quality | None
    speed: Speed
    memory: int | None
    tasks: Scores


@dataclass(frozen=True)
class Question:
    """Says what models are asked: a text, cut into windows, and tasks of lm-eval, on a device.

    ``context``: 0 stands for 512 tokens, or for as many as the model takes. ``limit``: use so many of the text's tokens
    at most. ``tokens_of``: a model whose vocabulary was cut; a reference reads the tokens that this makes of the text.
    """

    text: str | None
    context: int = 0
    stride: int = 0  # 0: half of ``context``
    limit: int | None = None
    device: str = "cpu"
    weight_only: bool = False
    tasks: Tasks | None = None
    tokens_of: str | None = None

    def tokens(self, model: Any, tokenizer: Any, path: str) -> Text | None:
        """Return the text as tokens, with those that the tokenizer puts before a text.

        Raises:
            LoadError: it has fewer than two tokens, or the model takes fewer at once than a window has.
        """
        if self.text is None:
            return None
        longest = context_of(model.config)
        if longest is not None and self.context > longest:
            raise LoadError(f"{path}: windows of {self.context} tokens (--context), the model takes {longest}")
        ids = tokenizer(self.text, verbose=False)["input_ids"]
        if len(ids) < 2:
            raise LoadError(f"{path}: the text has {len(ids)} tokens, two or more are needed")
        context = self.context or min(_CONTEXT, longest or _CONTEXT)
        return Text(torch.tensor(ids[: self.limit]), context, self.stride)


def judge(
    paths: Sequence[str], question: Question, reference: SavedLogits | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Verdict]:  # fmt: skip
    """Yield what is measured of each model in turn.

    Raises:
        LoadError: a model cannot be loaded, or its tokenizer makes other tokens of the text than the reference's.
    """
    if reference is not None and not question.context:
        question = replace(question, context=reference.text.context, stride=reference.text.stride)
    for path in paths:
        memory, started = PeakMemory(question.device), time.perf_counter()
        with operand(path, question.device, question.weight_only) as (model, tokenizer):
            seconds, text = time.perf_counter() - started, question.tokens(model, tokenizer, path)
            theirs = None if reference is None or text is None else _checked(path, text, reference)
            speed = replace(_speed(model), load_seconds=seconds)
            quality = None if text is None else evaluate(model, text, theirs, _of(on_progress, path))
            scores = question.tasks.run(model, tokenizer) if question.tasks else {}
            peak = memory.bytes()
            del model, tokenizer
        cut = (text.context, text.stride) if text else (0, 0)
        yield Verdict(path, stored_bytes(path), *cut, quality, speed, peak, scores)


def _checked(path: str, text: Text, reference: SavedLogits) -> SavedLogits | Mapped:
    """Return the reference as the model at a path sees it.

    Raises:
        LoadError: it has read other tokens.
    """
    found = mapped(reference, path)
    ids = text.ids if found is None else found.text(text).ids
    if not torch.equal(ids, reference.text.ids):
        raise LoadError(
            f"{path}: makes {len(ids)} tokens of the text, others than the reference's {len(reference.text.ids)}; only "
            "models with the same tokenizer are compared, or with one that was cut from it"
        )
    return found or reference


@contextmanager
def reference_logits(
    path: str, question: Question, keep: str | None = None, overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[SavedLogits]:  # fmt: skip
    """Predict the text with a reference model; its predictions are in a file for as long as the context lasts.

    ``path`` may also name a file of saved predictions, which is used as it is. ``keep`` names a file that stays.
    """
    if Path(path).suffix == ".safetensors":
        yield SavedLogits(path)
        return
    with temporary_folder() as folder:
        target = keep or os.path.join(folder.name, "logits.safetensors")
        with operand(path, question.device) as (model, tokenizer):
            text = question.tokens(model, tokenizer, path)
            if text is None:
                raise LoadError(f"{path}: a reference predicts a text, and none is given")
            if question.tokens_of is not None:
                text = _tokens_of(question, model, text, path)
            save_logits(model, text, target, name=path, overwrite=overwrite, on_progress=_of(on_progress, path))
            del model, tokenizer
        yield SavedLogits(target)


def _tokens_of(question: Question, model: Any, text: Text, path: str) -> Text:
    """Return the text with the tokens that a smaller vocabulary has for it, by the reference's ids.

    They are those of the text already if the reference has the same vocabulary.
    """
    found = kept_of(str(question.tokens_of))
    if found is None or model.config.get_text_config().vocab_size == len(found.ids):
        return text
    tokenizer = load_tokenizer(str(question.tokens_of))
    smaller = question.tokens(model, tokenizer, path)
    return text if smaller is None else replace(smaller, ids=torch.from_numpy(found.old(smaller.ids.numpy())))


def _speed(model: Any) -> Speed:
    longest = context_of(model.config) or 2 * _PROMPT
    prompt = min(_PROMPT, longest // 2)
    new = min(_NEW_TOKENS, longest - prompt - 1)
    timing.generate(model, 1, min(prompt, 8), 1)  # touches the pages for the first time
    first, others = timing.generate(model, 1, prompt, new)
    return Speed(0.0, prompt, first, statistics.median(others))


def _of(on_progress: OnProgress | None, path: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, path)
