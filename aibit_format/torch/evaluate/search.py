"""Converts a model to a size, or to a quality, by searching which tensor gets which scheme.

What each scheme costs each weight is measured (``sensitivity``), the best choice for the size is computed
(``convert.allocation``), and the file says what was chosen and why: its recipe has a line for each tensor, from which
the same bytes can be made again.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...convert.allocation import Choices
from ...convert.conversion import Conversion
from ...convert.convert import Calibration, Progress, Report, prepare
from ...convert.convert import run as convert
from ...convert.recipe import Recipe
from ...errors import LoadError, RecipeError
from ...file import sharded_reader
from ...file.rewrite import edit
from ...hf.context import context_of
from ...io.atomic import AtomicFolder
from ..load.model import load_model
from .perplexity import evaluate
from .predictions import Text
from .sensitivity import CANDIDATES, OnProgress, plain_model, sensitivities

_PRESET = "q4_0"  # names the weights that are searched: any preset names the same; a method rounds all of this one
_TOKENS = 512  # of the text that each weight is tried on
_TRIES = 5  # conversions until a size or a quality is met


@dataclass(frozen=True)
class Target:
    """Says what is wanted: bits of a searched weight, bytes of the file, or nats of divergence a token; one of them."""

    bits: float | None = None
    nbytes: int | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.bits, self.nbytes, self.kl) if each is not None]
        if len(given) != 1 or not 0 < given[0] < float("inf"):
            raise RecipeError("one target is wanted, and it is positive: bits, a size, or a divergence")

    @property
    def text(self) -> str:
        """Return the target as a file says it."""
        if self.bits is not None:
            return f"bits={self.bits:g}"
        return f"size={self.nbytes}" if self.nbytes is not None else f"kl={self.kl:g}"


@dataclass(frozen=True)
class Found:
    """Holds what a search found.

    ``frontier`` are the bits of a searched weight and the predicted divergence of the best choices, for every number of
    bytes. ``kl`` is the divergence that was measured of the result, and ``predicted_kl`` that which was expected, both
    on the text of the search.
    """

    report: Report
    choices: Choices
    chosen: tuple[str, ...]  # the scheme of each tensor
    bits: float
    predicted_kl: float
    kl: float
    frontier: tuple[tuple[float, float], ...]

    @property
    def schemes(self) -> dict[str, int]:
        """Return how many tensors are in each scheme."""
        return {scheme: self.chosen.count(scheme) for scheme in dict.fromkeys(self.chosen)}

    def corners(self, count: int = 12) -> list[tuple[float, float]]:
        """Return some points of the frontier, evenly spaced in bits, and its ends."""
        bits = np.array([each for each, _ in self.frontier])
        wanted = np.searchsorted(bits, np.linspace(bits[0], bits[-1], count), "right") - 1
        return [self.frontier[i] for i in dict.fromkeys(wanted.clip(0).tolist())]


def search(
    source: Any, path: str, target: Target, text: str, *, candidates: tuple[str, ...] = CANDIDATES,
    calibration: Calibration = None, architecture: str | None = None, tokens: int = _TOKENS, overwrite: bool = False,
    jobs: int | None = None, on_search: OnProgress | None = None, on_progress: Progress | None = None,
    method: str | None = None, choices: Choices | None = None,
) -> Found:  # fmt: skip
    """Convert ``source`` to the file ``path``, of the target's size or quality.

    Args:
        source, calibration, architecture, overwrite, jobs, on_progress, method: as for ``convert``. What the method
            saves in each scheme is learnt of some rows of each weight.
        text: of whose second half so many ``tokens`` are predicted, once for each weight, and once for each conversion.
        candidates: schemes that a weight may have.
        on_search: called with the weights that were measured, how many there are, and the next one's name.
        choices: of an earlier search (``Found.choices``) of the same source with the same candidates, calibration and
            method, so that nothing is measured but the result.

    Raises:
        RecipeError: the target cannot be met: not even the smallest candidates are small enough, or the largest good
            enough.
        LoadError: the text is too short, or the model does not predict the next token.
    """
    conversion = prepare(source, Recipe.of(_PRESET, method=method), architecture, calibration=calibration)
    if conversion.source.no_model:
        raise RecipeError(f"{conversion.source.path}: no model whose quality could be measured")
    with plain_model(conversion) as (model, tokenizer), AtomicFolder(path) as folder:
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise LoadError(f"{conversion.source.path}: {type(model).__name__} does not predict the next token")
        cut = _cut(text, model, tokenizer, tokens)
        if choices is None:
            choices = sensitivities(conversion, model, cut, candidates, on_search)
        elements = _elements(choices, conversion)
        trial = _Trial(source, conversion, choices, candidates, model, cut, os.path.join(folder.name, "m.aibit"))
        first = _first_budget(target, choices, elements, conversion.source.path, candidates)
        chosen, report, kl = trial.until(target, first, jobs, on_progress)
        predicted = choices.total(chosen)[1]
        nbytes = choices.total(chosen)[0]
        names = tuple(candidates[i] for i in chosen)
        about = {
            "quantization.search.target": target.text,
            "quantization.search.candidates": list(candidates),
            "quantization.search.text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "quantization.search.tokens": cut.predicted,
            "quantization.search.predicted_kl": float(f"{predicted:.6g}"),
            "quantization.search.kl": float(f"{kl:.6g}"),
        }
        files = edit(report.path, path, metadata=about, overwrite=overwrite)
        with sharded_reader.open(files[0]) as file:
            report = replace(report, path=files[0], files=tuple(files), file_bytes=file.size, root=file.root)
    frontier = tuple((8 * n / elements, cost) for n, cost in choices.frontier())
    return Found(report, choices, names, 8 * nbytes / elements, predicted, kl, frontier)


class _Trial:
    """Converts a model with a choice of schemes, and measures what came out."""

    def __init__(
        self, source: Any, conversion: Conversion, choices: Choices, candidates: tuple[str, ...], model: Any,
        text: Text, path: str,
    ) -> None:  # fmt: skip
        self._source, self._conversion, self._choices, self._candidates = source, conversion, choices, candidates
        self._model, self._text, self._path = model, text, path
        method = conversion.recipe.method
        self._method = None if method is None else method.text

    def until(
        self, target: Target, budget: int, jobs: int | None, on_progress: Progress | None
    ) -> tuple[np.ndarray, Report, float]:
        """Convert until the target is met: with fewer bytes if the file is too long, with more if it is too far off.

        Returns the choices i64 [T], the report of the conversion, and the divergence.
        """
        wrong = ""
        for _ in range(_TRIES):
            chosen = self._choices.within(budget)
            if chosen is None:
                break
            report, kl = self._run(chosen, jobs, on_progress)
            wrong = _beyond(target, report, kl)
            if not wrong:
                return chosen, report, kl
            budget = _next_budget(target, self._choices, chosen, report, kl, budget)
        where = self._conversion.source.path
        raise RecipeError(f"{where}: {target.text} cannot be met with {', '.join(self._candidates)}: {wrong}")

    def _run(self, chosen: np.ndarray, jobs: int | None, on_progress: Progress | None) -> tuple[Report, float]:
        rules = [
            (f"^{re.escape(name)}$", self._candidates[i])
            for name, i in zip(self._choices.names, chosen.tolist(), strict=True)
        ]
        architecture = str(self._conversion.about["model.architecture"])
        conversion = prepare(
            self._source, Recipe.of("keep", rules, method=self._method), architecture,
            calibration=self._conversion.statistics,
        )  # fmt: skip
        report = convert(conversion, self._path, True, on_progress, jobs)
        found = evaluate(load_model(report.path), self._text, self._model).divergence
        return report, found.mean if found else 0.0


def _cut(text: str, model: Any, tokenizer: Any, tokens: int) -> Text:
    """Return so many tokens of the second half of a text, as documents begin with titles; of all, if it is short."""
    ids = tokenizer(text[len(text) // 2 :], verbose=False)["input_ids"][: tokens + 1]
    if len(ids) <= tokens:
        ids = tokenizer(text, verbose=False)["input_ids"][: tokens + 1]
    if len(ids) < 2:
        raise LoadError(f"the text of a search has {len(ids)} tokens, two or more are needed")
    return Text(torch.tensor(ids), min(_TOKENS, context_of(model.config) or _TOKENS))


def _elements(choices: Choices, conversion: Conversion) -> int:
    shapes = {each.tensor.name: each.tensor.shape for each in conversion.tensors}
    return sum(int(np.prod(shapes[name], dtype=object)) for name in choices.names)


def _first_budget(target: Target, choices: Choices, elements: int, where: str, candidates: tuple[str, ...]) -> int:
    least = choices.total(choices.smallest())[0]
    if target.kl is not None:
        found = choices.costing(target.kl)
        if found is None:
            best = choices.frontier()[-1][1]
            raise RecipeError(f"{where}: {target.text} cannot be met: {best:.4g} is expected of the best candidates")
        return found
    budget = int(target.bits * elements / 8) if target.bits is not None else int(target.nbytes or 0)
    if budget < least:
        raise RecipeError(
            f"{where}: {target.text} cannot be met: the smallest of {', '.join(candidates)} take {least:,} bytes, "
            f"{8 * least / elements:.2f} bits for each weight"
        )
    return budget


def _beyond(target: Target, report: Report, kl: float) -> str:
    """Return how a result misses its target; empty if it does not."""
    if target.nbytes is not None and report.file_bytes > target.nbytes:
        return f"the file has {report.file_bytes:,} bytes"
    return f"the divergence is {kl:.4g}" if target.kl is not None and kl > target.kl else ""


def _next_budget(
    target: Target, choices: Choices, chosen: np.ndarray, report: Report, kl: float, budget: int
) -> int:  # fmt: skip
    """Return the bytes for the next try: fewer by what the file is too long, or those of its divergence."""
    nbytes, predicted = choices.total(chosen)
    if target.nbytes is not None:
        return min(nbytes - 1, budget - (report.file_bytes - target.nbytes))
    limit = (target.kl or 0.0) * predicted / kl * 0.98
    return max(nbytes + 1, choices.costing(limit) or choices.frontier()[-1][0])
