"""Chooses what to keep of a model, for the numbers that are wanted, by scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...calibrate.statistics import Statistics
from ...dtypes import to_float32
from ...errors import RecipeError
from ...formats.sources import values
from ..source import Transformed
from . import hidden, scores
from .layers import layer_list, text_config
from .plan import BY_LAYER, Plan, Wanted
from .widths import Layer, layers_of

_BY_LAYER: dict[str, Callable[..., np.ndarray]] = {
    "channels": scores.of_channels, "heads": scores.of_heads, "experts": scores.of_experts
}  # fmt: skip


@dataclass
class Choice:
    """Choose by statistics of activations, or by weights alone where there are none; each score is computed once."""

    source: Transformed
    statistics: Statistics | None = None
    _scores: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    @property
    def scored(self) -> str:
        """Return what the choice goes by, as a file says it."""
        return "weights" if self.statistics is None else f"statistics {self.statistics.digest}"

    @cached_property
    def layers(self) -> dict[int, Layer]:
        """Return the widths of each layer."""
        return layers_of(self.source.model)

    def kinds(self) -> str:
        """Return which kind is cut where nobody says: experts if there are some, otherwise channels."""
        return "experts" if any(layer.experts for layer in self.layers.values()) else "channels"

    def most(self, kind: str) -> tuple[int, int]:
        """Return how many of a kind there are at most, and by how many their number can go down."""
        if kind == "layers":
            return layer_list(self.source.model)[1], 1
        if kind == "hidden":
            size = text_config(self.source.model).hidden_size
            return size, next(step for step in (32, 16, 8, 4, 1) if not size % step and (step == 1 or size >= 4 * step))
        some = [layer for layer in self.layers.values() if kind != "experts" or layer.experts]
        if not some:
            raise RecipeError(f"{self.source.model.architecture} has no experts")
        first = min(some, key=lambda layer: (layer.count, layer.heads))
        if kind == "channels":
            return first.count, next(step for step in (64, 32, 16, 8, 1) if not first.count % step)
        return (first.experts, 1) if kind == "experts" else (first.heads, first.heads // first.groups)

    def plan(self, wanted: Wanted) -> Plan:
        """Return what is kept.

        Raises:
            RecipeError: more is wanted than there is, or a number that cannot be; statistics lack what is needed.
        """
        kept = self._kept_layers(wanted)
        numbers = list(range(layer_list(self.source.model)[1])) if kept is None else kept.tolist()
        found: dict[str, Mapping[int, np.ndarray]] = {}
        for kind, count in wanted.counts.items():
            if kind in BY_LAYER:
                found[kind] = self._kept(kind, count, numbers, wanted)
        if "experts" in found and "channels" in found:
            chosen, both = found["experts"], found["channels"]
            found["channels"] = {number: both[number][chosen[number]] for number in both}
        stream, gains = (None, {}) if wanted.hidden is None else self._kept_hidden(wanted.hidden, wanted.block)
        return Plan(kept, hidden=stream, gains=gains, refit=wanted.refit, how=wanted.text, **found)

    def _kept_hidden(self, count: int, block: int) -> tuple[np.ndarray, Mapping[str, float]]:
        most, _ = self.most("hidden")
        _check_count("hidden", count, most)
        _check_blocks("hidden", count, most, block)
        axes = hidden.hidden_axes(self.source, count)
        found, seen = hidden.scored(self.source.model, axes, self.statistics, self._values)
        kept = _in_blocks(found, count, block)
        return kept, hidden.factors(seen, kept)

    def _kept_layers(self, wanted: Wanted) -> np.ndarray | None:
        count = layer_list(self.source.model)[1]
        if wanted.dropped:
            beyond = [number for number in wanted.dropped if number >= count]
            if beyond or len(wanted.dropped) == count:
                raise RecipeError(f"layers {', '.join(map(str, beyond or wanted.dropped))} to drop, of {count}")
            return np.setdiff1d(np.arange(count), wanted.dropped)
        if wanted.layers is None:
            return None
        _check_count("layers", wanted.layers, count)
        model = self.source.model
        return scores.largest(scores.of_layers(model, self.statistics, self._values), wanted.layers)

    def _kept(self, kind: str, count: int, numbers: list[int], wanted: Wanted) -> dict[int, np.ndarray]:
        block = wanted.block
        most, step = self.most(kind)
        _check_count(kind, count, most)
        if kind == "heads":
            if count % step:
                raise RecipeError(f"{count} heads to keep: {step} share keys and values, so that a multiple is needed")
            count //= step
        if kind == "channels":
            _check_blocks(kind, count, most, block)
        layers = {n: self.layers[n] for n in numbers if kind != "experts" or self.layers[n].experts}
        if kind == "channels" and len({bool(layer.experts) for layer in layers.values()}) > 1:  # of experts alone
            layers = {number: layer for number, layer in layers.items() if layer.experts}
        found = self._scores.setdefault(kind, {})
        for number, layer in layers.items():
            if number not in found:
                found[number] = _BY_LAYER[kind](layer, self.statistics, self._values)
        if kind == "channels" and wanted.uneven:
            if any(layer.experts for layer in layers.values()):
                raise RecipeError("experts of all layers have one width: leave out uneven")
            counts = _uneven({number: found[number] for number in layers}, count, math.lcm(step, block))
            return {number: _in_blocks(found[number], counts[number], block) for number in layers}
        size = block if kind == "channels" else 1
        return {number: _in_blocks(found[number], count, size) for number in layers}

    def _values(self, name: str) -> np.ndarray:
        array, dtype = values(self.source, name)
        found = self.source.tensors[name]
        array = np.swapaxes(array, -1, -2) if found.transposed else array
        return array if dtype == "f64" else to_float32(array, dtype)


def _uneven(found: Mapping[int, np.ndarray], count: int, step: int) -> dict[int, int]:
    """Return how many of each layer stay, ``count`` in the mean, in steps: those that have the largest share of theirs.

    Every layer keeps a step or more.
    """
    shares = {}
    for number, scores_of in found.items():
        sums = np.sort(scores_of)[::-1][: len(scores_of) // step * step].reshape(-1, step).sum(1)
        shares[number] = sums / max(scores_of.sum(), np.finfo(np.float64).tiny)
    left = max(count * len(found) // step - len(found), 0)
    rest = np.array([(share, number) for number, each in shares.items() for share in each[1:]])
    order = np.argsort(-rest[:, 0], kind="stable")[:left]
    more = np.bincount(rest[order, 1].astype(np.int64), minlength=max(found) + 1)
    return {number: step * (1 + int(more[number])) for number in found}


def _in_blocks(found: np.ndarray, count: int, size: int) -> np.ndarray:
    blocks = found.reshape(*found.shape[:-1], -1, size).sum(-1)
    kept = scores.largest(blocks, count // size)
    return (kept[..., None] * size + np.arange(size)).reshape(*kept.shape[:-1], -1)


def _check_blocks(kind: str, count: int, most: int, block: int) -> None:
    if count % block or most % block:
        raise RecipeError(f"{count} of {most} {kind} to keep, in blocks of {block}, which do not divide both")


def _check_count(kind: str, count: int, most: int) -> None:
    if count > most:
        raise RecipeError(f"{count} {kind} to keep, and there are {most}")
