"""The choice of schemes for a size: against every possible choice, where there are few."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.convert.allocation import Choices


@st.composite
def choices(draw):
    tensors, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def numbers(least, most):
        row = st.lists(st.integers(least, most), min_size=count, max_size=count)
        return draw(st.lists(row, min_size=tensors, max_size=tensors))

    nbytes, costs = numbers(1, 30), np.array(numbers(0, 40), np.float64)
    for row in costs:
        row[draw(st.integers(0, count)) :][1:] = np.inf  # what a tensor does not have; never all
    return Choices(tuple(map(str, range(tensors))), np.array(nbytes, np.int64), costs)


def every(found: Choices):
    places = [[i for i, cost in enumerate(row) if cost < np.inf] for row in found.costs]
    return [found.total(np.array(each)) for each in product(*places)]


@given(choices(), st.integers(0, 130))
def test_a_choice_fits_and_is_one_step_from_the_best(found, budget):
    chosen, best = found.within(budget), min((c for n, c in every(found) if n <= budget), default=None)
    smallest = found.total(found.smallest())
    assert smallest[0] == min(n for n, _ in every(found))
    if best is None:
        assert chosen is None
        return
    nbytes, cost = found.total(chosen)
    assert nbytes <= budget and cost >= best - 1e-9
    # The relaxation is a bound from below; the steps that it takes are whole, but for the last.
    frontier = found.frontier()
    before = [point for point in frontier if point[0] <= budget][-1]
    after = next((point for point in frontier if point[0] > budget), before)
    assert cost <= before[1] + 1e-9 and best >= after[1] - 1e-9


@given(choices())
def test_the_frontier_is_convex_and_made_of_possible_choices(found):
    frontier, possible = found.frontier(), set(every(found))
    assert all(any(n == m and abs(c - d) < 1e-9 for m, d in possible) for n, c in frontier)
    slopes = [(d - c) / (m - n) for (n, c), (m, d) in pairwise(frontier)]
    assert all(a <= b + 1e-9 for a, b in pairwise(slopes)) and all(slope < 0 for slope in slopes)
    least = min(cost for _, cost in possible)
    assert abs(frontier[-1][1] - least) < 1e-9
    assert found.costing(least + 1e-9) == frontier[-1][0] and found.costing(least - 1) is None


def test_more_bytes_go_where_they_save_the_most():
    found = Choices(("a", "b"), np.array([[10, 20], [10, 20]]), np.array([[4.0, 1.0], [9.0, 1.0]]))
    assert [found.within(n).tolist() if n > 19 else found.within(n) for n in (19, 20, 30, 40)] == [
        None, [0, 0], [0, 1], [1, 1],
    ]  # fmt: skip
    assert found.frontier() == [(20, 13.0), (30, 5.0), (40, 2.0)] and found.costing(5) == 30


def test_what_is_left_is_filled_with_steps_that_fit():
    """The best step for a byte does not fit, and another does."""
    found = Choices(("a", "b"), np.array([[10, 60], [10, 15]]), np.array([[100.0, 0.0], [5.0, 1.0]]))
    assert found.within(30).tolist() == [0, 1] and found.within(75).tolist() == [1, 1]


@pytest.mark.parametrize("cost", [0.0, 7.0])
def test_a_choice_that_takes_more_and_saves_nothing_is_never_made(cost):
    found = Choices(("a",), np.array([[10, 20, 30]]), np.array([[cost, cost, cost + 1]]))
    assert found.within(100).tolist() == [0] and found.frontier() == [(10, cost)]
