"""Chooses a scheme for each tensor, so that a model of a given size loses the least.

Each tensor has some choices, each of which takes bytes and costs quality; costs add up. The best choice for a number of
bytes is a knapsack with one item of each class. Its linear relaxation is solved exactly: of each tensor only choices on
the lower convex hull of (bytes, cost) can be in a solution, and the steps between them are taken in the order of what
they save for a byte. What is left of the bytes is then filled with the steps that fit. The result is at most one step
away from the best (Sinha and Zoltners, The multiple-choice knapsack problem, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Choices:
    """Hold what each of S choices would take and cost, for each of T tensors.

    ``names`` are those of the tensors, ``nbytes`` i64 [T, S], ``costs`` f64 [T, S]; a choice that a tensor does not
    have costs infinity.
    """

    names: tuple[str, ...]
    nbytes: np.ndarray
    costs: np.ndarray

    def total(self, chosen: np.ndarray) -> tuple[int, float]:
        """Return the bytes and the cost of choices i64 [T]."""
        places = np.arange(len(self.names))
        return int(self.nbytes[places, chosen].sum()), float(self.costs[places, chosen].sum())

    def smallest(self) -> np.ndarray:
        """Return each tensor's choice of the fewest bytes, i64 [T]."""
        return np.array([hull[0] for hull in self._hulls()], np.int64)

    def within(self, budget: int) -> np.ndarray | None:
        """Return the choices i64 [T] of the least cost in so many bytes; ``None`` if not even the smallest fit."""
        chosen = self.smallest()
        used = self.total(chosen)[0]
        if used > budget:
            return None
        steps = self._steps()
        for place, (before, after) in steps:  # of one tensor, in the order of its hull
            more = int(self.nbytes[place, after] - self.nbytes[place, before])
            if chosen[place] == before and used + more <= budget:
                chosen[place], used = after, used + more
        return chosen

    def frontier(self) -> list[tuple[int, float]]:
        """Return (bytes, cost) of every solution of the relaxation that is whole, the smallest first."""
        nbytes, cost = self.total(self.smallest())
        found = [(nbytes, cost)]
        for place, (before, after) in self._steps():
            nbytes += int(self.nbytes[place, after] - self.nbytes[place, before])
            cost += float(self.costs[place, after] - self.costs[place, before])
            found.append((nbytes, cost))
        return found

    def costing(self, limit: float) -> int | None:
        """Return the fewest bytes of a solution that costs at most so much; ``None`` if none does."""
        return next((nbytes for nbytes, cost in self.frontier() if cost <= limit), None)

    def _hulls(self) -> list[list[int]]:
        return [_hull(nbytes, costs) for nbytes, costs in zip(self.nbytes, self.costs, strict=True)]

    def _steps(self) -> list[tuple[int, tuple[int, int]]]:
        """Return all steps from one choice of a tensor to its next, those first that save the most for a byte."""
        steps = [(place, step) for place, hull in enumerate(self._hulls()) for step in pairwise(hull)]

        def saved(step: tuple[int, tuple[int, int]]) -> float:
            place, (before, after) = step
            less = self.costs[place, before] - self.costs[place, after]
            return float(less / (self.nbytes[place, after] - self.nbytes[place, before]))

        # The sort is stable, and of one tensor each step saves less than the one before.
        return sorted(steps, key=saved, reverse=True)


def _hull(nbytes: Sequence[int] | np.ndarray, costs: Sequence[float] | np.ndarray) -> list[int]:
    """Return the choices on the lower convex hull of (bytes, cost), from the smallest to the one of the least cost."""
    order = sorted((int(n), float(c), i) for i, (n, c) in enumerate(zip(nbytes, costs, strict=True)) if c < np.inf)
    hull: list[tuple[int, float, int]] = []
    for point in order:
        if hull and point[1] >= hull[-1][1]:
            continue  # it takes more, and costs no less
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return [i for _, _, i in hull]


def _turns_up(first: tuple[int, float, int], second: tuple[int, float, int], third: tuple[int, float, int]) -> bool:
    """Return whether the second point is on or above the line between the others."""
    return (second[1] - first[1]) * (third[0] - first[0]) >= (third[1] - first[1]) * (second[0] - first[0])
