"""What a pruned model has kept: tables and numbers go in and come out, step after step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.container import pruning
from aibit_format.container.pruning import Kept, described, kept
from aibit_format.errors import FormatError

LISTS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20, unique=True).map(sorted)
ROWS = st.lists(
    st.builds(
        lambda kind, numbers, layer, expert: Kept(0, kind, np.array(numbers, np.uint32), layer, expert),
        st.sampled_from(["layers", "channels", "hidden"]), LISTS, st.integers(-1, 99), st.integers(-1, 9),
    ), min_size=1, max_size=6,
)  # fmt: skip


def same(a, b):
    return len(a) == len(b) and all(
        (x.kind, x.layer, x.expert) == (y.kind, y.layer, y.expert) and np.array_equal(x.numbers, y.numbers)
        for x, y in zip(a, b, strict=True)
    )


@given(ROWS, ROWS)
def test_what_is_described_is_read(first, second):
    said, document = described({"other": 1}, None, "layers=2", "weights", first)
    assert "other" not in said and same(kept(said, {pruning.DOCUMENT: document}), first)
    said, document = described(said, document, "hidden=4", "statistics x", second)
    found = kept(said, {pruning.DOCUMENT: document})
    assert same(found, [*first, *second])
    assert [row.step for row in found] == [0] * len(first) + [1] * len(second)
    assert said[pruning.APPLIED] == ["layers=2", "hidden=4"] and said[pruning.SCORES] == ["weights", "statistics x"]


def test_a_list_may_begin_below_the_end_of_the_last():
    rows = [Kept(0, "channels", np.array([5, 6])), Kept(0, "channels", np.array([0, 1]), 1)]
    said, document = described({}, b"", "how", "none", rows)
    assert same(kept(said, {pruning.DOCUMENT: document}), rows)


@pytest.mark.parametrize("numbers", [[1, 1], [2, 1]])
def test_numbers_increase(numbers):
    rows = [Kept(0, "channels", np.array([5])), Kept(0, "channels", np.array(numbers), 1)]
    said, document = described({}, None, "how", "none", rows)
    with pytest.raises(FormatError, match=f"{numbers[1]} after {numbers[0]}") as caught:
        kept(said, {pruning.DOCUMENT: document})
    assert caught.value.code == "AIB-E707"


def test_a_file_that_was_not_pruned():
    assert kept({}, {}) == [] and kept({"pruning.applied": []}, {"x": b""}) == []
