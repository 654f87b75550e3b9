"""Defines the statistics of what goes into the layers of a model: moments, extremes, percentiles, counts.

For each weight that inputs are multiplied with (Linear, Conv1D, fused experts) they say of every column of its inputs,
over all tokens, the sums of values, magnitudes and squares and the largest magnitude. The mean of squares is what
llama.cpp calls importance. Weights of a mixture of experts have all of this for each expert by itself.

The symmetry score of a layer is ``exp(-|mean| / (std + eps))``: 1 for inputs around zero, 0 for inputs far to one side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import xxhash

from ..errors import SourceError
from .hessians import Hessians

T = TypeVar("T")

EPS, THRESHOLD = 1e-8, 0.6
# Shares of the values of a layer's inputs that are at most as large as the percentiles.
PERCENTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Inputs:
    """Hold the statistics of one weight's inputs, for each of G experts; G is 1 without experts. K is the columns.

    Files of llama.cpp hold counts and sums of squares alone; the others are ``None`` then. ``percentiles`` are of all
    experts together, of values rounded to bf16, nearest rank. ``hessian`` is the sum of x^T x over tokens.
    """

    counts: np.ndarray  # i64 [G]: tokens
    sum2: np.ndarray  # f64 [G, K]
    sum: np.ndarray | None = None  # f64 [G, K]
    magnitude: np.ndarray | None = None  # f64 [G, K]: sum of magnitudes
    largest: np.ndarray | None = None  # f32 [G, K]: largest magnitude
    low: np.ndarray | None = None  # f32 [G]
    high: np.ndarray | None = None  # f32 [G]
    percentiles: np.ndarray | None = None  # f32 [9]
    hessian: Hessians | None = None  # f32 [G, K, K]
    experts: bool = False
    routed: np.ndarray | None = None  # f64 [G]: sum of the weights that a router gave to outputs of experts

    @property
    def tokens(self) -> int:
        """Return how many rows of inputs there were, of all experts."""
        return int(self.counts.sum())

    @cached_property
    def mean(self) -> float | None:
        """Return the mean of all values; ``None`` if it is not known, or there were none."""
        if self.sum is None or not self.tokens:
            return None
        return float(self.sum.sum()) / (self.tokens * self.sum2.shape[1])

    @cached_property
    def std(self) -> float | None:
        """Return the standard deviation of all values (of the population)."""
        if self.mean is None:
            return None
        return math.sqrt(max(float(self.sum2.sum()) / (self.tokens * self.sum2.shape[1]) - self.mean**2, 0.0))

    @property
    def extremes(self) -> tuple[float, float] | None:
        """Return the lowest and the highest value."""
        seen = self.counts > 0
        if self.low is None or self.high is None or not seen.any():
            return None
        return float(self.low[seen].min()), float(self.high[seen].max())

    def score(self, eps: float = EPS) -> float | None:
        """Return the symmetry score."""
        return None if self.mean is None or self.std is None else math.exp(-abs(self.mean) / (self.std + eps))

    def importance(self) -> np.ndarray:
        """Return the mean of squares of each column, f32 [K], or [G, K] of experts; ones where no token was seen.

        llama.cpp does the same with experts that no token was routed to.
        """
        seen = self.counts[:, None] > 0
        means = np.divide(self.sum2, self.counts[:, None], out=np.ones_like(self.sum2), where=seen)
        return means.astype(np.float32) if self.experts else means[0].astype(np.float32)


@dataclass(frozen=True)
class About:
    """Say what statistics are of: the model and the text, and how they were taken."""

    architecture: str
    source: str  # 32 hex digits: digest of the source's files
    text: str  # 32 hex digits: digest of the text
    tokens: int
    samples: int
    length: int  # of a sample, in tokens
    seed: int = 0
    eps: float = EPS
    threshold: float = THRESHOLD
    dtype: str = ""  # the model computed in
    streamed: bool = True  # a block of the model was in memory at a time; else all of it was
    names: tuple[str, ...] = ()  # of the files of text

    @classmethod
    def parse(cls, text: str, where: str) -> About:
        """Parse what a file says; raises SourceError if a value is missing or of another type."""
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
        try:
            values: dict[str, Any] = json.loads(text)
            wrong = [f.name for f in fields(cls) if f.type in kinds and (
                not isinstance(values[f.name], kinds[str(f.type)])
                or (f.type != "bool" and isinstance(values[f.name], bool)))]  # fmt: skip
            values["names"] = tuple(str(name) for name in values["names"])
            if wrong or min(values["tokens"], values["samples"], values["length"]) < 0:
                raise ValueError(", ".join(wrong) or "a negative number")
            return cls(**values)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(f"{where}: what it says of its statistics is not understood: {error}") from error

    @property
    def text_of(self) -> str:
        """Return the JSON that ``parse`` reads."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Statistics:
    """Hold the statistics of a model: those of each weight's inputs, by the weight's name in transformers.

    ``ties`` maps other names of a weight to the name under which a file stores it. ``angles`` are those between what
    goes into a block of the model and what comes out, mean over tokens, as a share of pi, by the block's name.
    ``taken`` is the digest of the statistics that were taken, if a transformation has made others of them; these are
    known by it.
    """

    about: About
    inputs: Mapping[str, Inputs]
    ties: Mapping[str, str] = field(default_factory=dict)
    angles: Mapping[str, float] = field(default_factory=dict)
    taken: str | None = None

    @property
    def unreached(self) -> list[str]:
        """Return the names of the weights that no token reached."""
        return [name for name, found in self.inputs.items() if not found.tokens]

    @cached_property
    def digest(self) -> str:
        """Return the xxh3_128 of all counts, sums and Hessians and of what they are of, 32 hex digits.

        It is the same for the same statistics in memory and in a file.
        """
        if self.taken is not None:
            return self.taken
        state = xxhash.xxh3_128(self.about.text_of.encode())
        state.update(json.dumps(dict(self.angles), sort_keys=True).encode() if self.angles else b"")
        hessians: dict[int, str] = {}  # weights share them
        for name in sorted(self.inputs):
            found = self.inputs[name]
            for key in ("counts", "sum2", "sum", "magnitude", "largest", "low", "high", "percentiles", "routed"):
                if (array := getattr(found, key)) is not None:
                    state.update(f"{name}\0{key}\0{array.dtype.str}{array.shape}".encode())
                    state.update(np.ascontiguousarray(array).data)
            if (hessian := found.hessian) is not None:
                if id(hessian) not in hessians:
                    hessians[id(hessian)] = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(hessian).data)
                state.update(f"{name}\0hessian\0{hessian.shape}{hessians[id(hessian)]}".encode())
        return state.hexdigest()

    def with_inputs(self, changed: Mapping[str, Inputs]) -> Statistics:
        """Return the statistics of a transformed model, whose inputs of some weights are others."""
        return replace(self, inputs={**self.inputs, **changed}, taken=self.digest)

    def check(self, columns: Mapping[str, int], where: str) -> None:
        """Raise SourceError unless these are statistics of a model whose weights have so many columns, by name.

        A model may have weights that statistics lack.
        """
        unknown = [name for name in self.inputs if name not in columns]
        if unknown or not self.inputs:
            shown = ", ".join(unknown[:2]) or "nothing"
            raise SourceError(f"{where}: statistics of another model: they are of {shown}, which this model has not")
        for name in self.inputs:
            found = self.inputs[name].sum2.shape[1]
            if found != columns[name]:
                raise SourceError(
                    f"{where}: statistics of another model: tensor {name!r} has {columns[name]} columns here, "
                    f"and {found} there"
                )


def importance(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the mean of squares of each column of each weight's inputs, by the weight's names, tied ones too.

    They are f32 [K], or [experts, K], and ones where no token was seen: such columns matter alike.
    """
    return _tied(statistics, {name: inputs.importance() for name, inputs in statistics.inputs.items()})


def hessians(statistics: Statistics) -> dict[str, Hessians]:
    """Return the sums of x^T x, f32 [experts or 1, K, K], of weights that have them, by the weight's names as above."""
    return _tied(
        statistics, {name: h for name, inputs in statistics.inputs.items() if (h := inputs.hessian) is not None}
    )


def _tied(statistics: Statistics, found: dict[str, T]) -> dict[str, T]:
    """Add the other names of tied weights."""
    for name, target in statistics.ties.items():
        for one, other in ((name, target), (target, name)):
            if one in found:
                found.setdefault(other, found[one])
    return found


def unreached(names: Iterable[str], shown: int = 5) -> str:
    """Return a line that says which weights no token reached, and what follows."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return f"no token reached {', '.join(listed[:shown])}{more}: all their columns count alike"
