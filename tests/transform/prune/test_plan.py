"""What is wanted is read as users write it, and what is kept is said by number."""

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.prune.plan import Plan, Wanted


@pytest.mark.parametrize("text", [
    "layers=20", "channels=1024,heads=6,experts=4", "drop=3+5", "size=80000000,by=heads",
    "channels=64,block=32,uneven,refit",
])  # fmt: skip
def test_a_text_is_what_it_says(text):
    wanted = Wanted.parse(text)
    assert wanted.text == text and Wanted.parse(wanted.text) == wanted


@pytest.mark.parametrize(("text", "message"), [
    ("", "is not understood"), ("layers", "a positive number"), ("layers=0", "a positive number"),
    ("layers=-1", "a positive number"), ("layers=9999999999", "a positive number"), ("rows=3", "'rows=3' is not und"),
    ("layers=1,layers=2", "repeated"), ("layers=2,drop=1", "not both"), ("drop=a", "numbers of layers"),
    ("layers=2,uneven", "only channels"), ("by=heads,layers=2", "for a size"),
    ("size=5,by=rows", "'rows': for a size, one of layers"),
    ("size=5,layers=2", "a size, or numbers"), ("refit", "nothing to prune"), ("channels=4,refit=2", "refit '2'"),
])  # fmt: skip
def test_what_has_no_meaning(text, message):
    with pytest.raises(RecipeError, match=message):
        Wanted.parse(text)


def test_rows_are_what_a_file_lists():
    both = np.array([[0, 2], [1, 3]])
    plan = Plan(np.array([0, 2]), channels={0: np.array([1, 3]), 1: np.array([9]), 2: both}, hidden=np.arange(4))
    rows = [(row.kind, row.layer, row.expert, row.numbers.tolist()) for row in plan.rows()]
    assert rows == [
        ("layers", -1, -1, [0, 2]), ("hidden", -1, -1, [0, 1, 2, 3]), ("channels", 0, -1, [1, 3]),
        ("channels", 2, 0, [0, 2]), ("channels", 2, 1, [1, 3]),
    ]  # fmt: skip
    assert [row.kind for row in Plan(heads={1: np.array([1])}).rows()] == ["heads"]
    assert all(row.step == 0 for row in plan.rows())
