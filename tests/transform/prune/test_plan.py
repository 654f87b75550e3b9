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


def test_a_file_says_each_step():
    first = Plan(np.array([0, 2]), channels={0: np.array([1, 3]), 1: np.array([9]), 2: np.array([0, 5])}, how="a")
    said = first.metadata({"other": 1}, "weights")
    assert said["pruning.applied"] == ["a"] and said["pruning.scores"] == ["weights"]
    assert said["pruning.step0.layers"].tolist() == [0, 2]
    assert said["pruning.step0.channels"].tolist() == [1, 3, 0, 5]
    assert said["pruning.step0.channels_layers"].tolist() == [0, 2]
    assert said["pruning.step0.channels_counts"].tolist() == [2, 2]
    again = Plan(heads={1: np.array([1])}, how="b").metadata(said, "statistics x")
    assert again["pruning.applied"] == ["a", "b"] and again["pruning.scores"] == ["weights", "statistics x"]
    assert again["pruning.step1.heads"].tolist() == [1] and "pruning.step0.heads" not in again
    assert all(value.dtype == np.int64 for value in said.values() if isinstance(value, np.ndarray))
