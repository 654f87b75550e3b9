"""Implements what schemes share whose scales can be searched for: the option ``search``, and groups of a matrix.

``search=none`` rounds to nearest with the scale of the range, as the formulas of the field and the spec's pages have
it. ``search=1`` searches (``scale_search``): for each group the scale, and the zero point if it has one, with the least
sum of squared errors, weighted by the importance of columns where there is one, or else by the values (``groups_of``).
Files do not say which it was; any reader reads both.

By default, tensors with an importance are searched, and others rounded: ``encode`` is the formula. Without data, a
search lowers the error of weights in every scheme, but not always that of a model. Mean divergence of SmolLM2 135M,
rounded and searched: int4-group .442 and .455, symmetric .645 and .652, mxfp4 .579 and .596, but nvfp4 .321 and .261,
and nf4 .394 and .336. So conversions to nvfp4 search (``gains_alone``), while nf4 and fp4 stay bitsandbytes' own unless
asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import numpy as np

from ..dtypes import to_float32
from .base import Scheme
from .ggml_blocks import powers
from .scale_search import LARGEST_GROUP, NUMPY, Grid, Groups, Pair, Steps

Numbers = Mapping[str, np.ndarray]  # role -> what groups have, in storage, [n]

AUTO, SEARCH, PLAIN, HQQ = range(4)
_REPEATS = 2  # of solving for a scale and rounding with it
_ROUNDS = 2  # of the same with scales as they are stored
_LEAST_WEIGHT = np.float32(2.0**-20)  # relative to the largest of a group, so that no column is left to chance


@dataclass(frozen=True)
class Searched(Scheme):
    """A base class for schemes with codes of groups, whose numbers (scales, zero points) can be searched for."""

    of_encoder: ClassVar[tuple[str, ...]] = ("search",)
    words = {"search": {"none": PLAIN}}
    promised: ClassVar[bool] = False  # whether the formula is promised, unless a search is asked for

    search: int = field(default=AUTO, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.search not in (AUTO, SEARCH, *self.words["search"].values()):
            raise self.refuse(f"{self.name}: search {self.search}, one of {', '.join(self.words['search'])} or 1")

    @property
    def takes_importance(self) -> bool:
        return self.search == SEARCH or (self.search == AUTO and not self.promised)

    def is_searched(self, importance: np.ndarray | None) -> bool:
        """Tell whether ``encode_weighted`` looks for better numbers than those of the formula."""
        automatic = not self.promised if importance is not None else self.gains_alone
        return self.search != PLAIN and (self.search != AUTO or automatic)

    @property
    def of_formula(self) -> Self:
        """Return the scheme as ``encode`` encodes it: by the formula, unless a search is asked for."""
        return replace(self, search=PLAIN) if self.search == AUTO else self

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        return self.of_formula.encode_weighted(array, dtype, None)

    @abstractmethod
    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps = NUMPY
    ) -> dict[str, np.ndarray]:
        """Encode as the base class says; ``steps`` are those of the search."""

    @property
    @abstractmethod
    def grid_of_codes(self) -> Grid:
        """Return what codes stand for before the scale, and which scales are tried."""

    @abstractmethod
    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        """Return numbers, as they are stored, that are near to a scale and a zero, f32 [n].

        ``plain`` are those of plain rounding. A scale that is not finite may come out as any number.
        """

    @abstractmethod
    def real(self, numbers: Numbers) -> Pair:
        """Return the scale and the zero, f32 [n], that numbers stand for: ``x = scale * (code - zero)``."""

    def first_tries(self, groups: Groups, plain: Numbers, steps: Steps) -> Sequence[Numbers]:
        """Return numbers to choose from besides the plain ones: here, those near what fits best."""
        return near_fit(self, groups, plain, steps)

    def improved(self, groups: Groups, plain: Numbers, steps: Steps = NUMPY) -> Numbers:
        """Return numbers of groups with which the weighted error is at most that of the ``plain`` ones."""
        return improved(self, groups, plain, steps) if groups.values.size else plain


class Scaled(Protocol):
    """Says what the search needs to know of numbers: the methods of ``Searched``."""

    @property
    def grid_of_codes(self) -> Grid: ...

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]: ...

    def real(self, numbers: Numbers) -> Pair: ...

    def first_tries(self, groups: Groups, plain: Numbers, steps: Steps) -> Sequence[Numbers]: ...


def improved(scaled: Scaled, groups: Groups, plain: Numbers, steps: Steps) -> Numbers:
    """Return numbers of groups with which the weighted error is at most that of the ``plain`` ones."""
    best, tries = plain, scaled.first_tries(groups, plain, steps)
    for turn in range(1 + _ROUNDS):
        candidates = [best, *tries]
        scales, zeros = (np.stack(each) for each in zip(*map(scaled.real, candidates), strict=True))
        index, fitted = steps.choose(scaled.grid_of_codes, groups, scales, zeros)
        at = np.arange(len(index))
        best = {role: np.stack([numbers[role] for numbers in candidates])[index, at] for role in best}
        if turn < _ROUNDS:
            tries = _near(scaled, fitted, scaled.real(best)[1], plain)
    return best


def near_fit(scaled: Scaled, groups: Groups, plain: Numbers, steps: Steps) -> Sequence[Numbers]:
    """Return numbers near those real ones that fit best."""
    return _near(scaled, *steps.fit(scaled.grid_of_codes, groups, _REPEATS), plain)


def _near(scaled: Scaled, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
    """Return what ``stored`` returns, with plain numbers where the scale is none."""
    usable = np.isfinite(scale) & (scale != 0) & np.isfinite(zero)
    usual, middle = scaled.real(plain)
    return scaled.stored(np.where(usable, scale, usual), np.where(usable, zero, middle), plain)


def groups_of(rows: np.ndarray, dtype: str, size: int, importance: np.ndarray | None) -> Groups:
    """Cut rows [n, columns] into groups of ``size``, the last of which may be short, with an importance of theirs.

    Args:
        importance: f32 [columns] or [n, columns]. None: an element counts as its magnitude and half the largest one of
            its group, since models hang on large weights, which a search that takes all alike would clip.
    """
    columns = rows.shape[1]
    values = _cut(rows, size)
    if importance is None:
        magnitude = np.abs(to_float32(values, dtype))
        top = magnitude.max(axis=1, keepdims=True, initial=0)
        weights = (magnitude + top * np.float32(0.5)) * powers(top)[1]
    else:
        given = _cut(np.ascontiguousarray(importance, np.float32).reshape(-1, columns), size)
        weights = np.maximum(given * powers(given.max(axis=1, keepdims=True, initial=0))[1], _LEAST_WEIGHT)
    if values.shape[1] != size or columns % size:
        there = _cut(np.ones((1, columns), np.float32), size)
        weights.reshape(-1, *there.shape)[:] *= there  # what is added to fill groups has no weight
    return Groups(values, dtype, weights)


def _cut(rows: np.ndarray, size: int) -> np.ndarray:
    """Cut rows into groups, [groups, size], filled with zeros to an even number of elements."""
    if rows.shape[1] % size:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)))
    cut = np.ascontiguousarray(rows).reshape(-1, size)
    return np.pad(cut, ((0, 0), (0, 1))) if size % 2 else cut


def fits(size: int) -> bool:
    """Tell whether groups of so many elements are searched."""
    return 0 < size <= LARGEST_GROUP
