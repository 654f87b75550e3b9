"""What a block returns is taken apart and put together again."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.calibrate import trees

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3),
    st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32)),
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(VALUES)
def test_a_value_comes_back_by_way_of_json(value):
    tensors, form = trees.flatten(value)
    again = trees.unflatten(json.loads(json.dumps(form)), iter(tensors))
    assert same(value, again) and len(trees.tensors_in(value)) == len(tensors)


def test_what_is_not_plain_is_named():
    with pytest.raises(trees.NotPlainError, match="set"):
        trees.flatten([torch.ones(1), {1}])


def test_a_nan_is_found_wherever_it_is():
    bad = torch.tensor([1.0, float("nan")])
    assert trees.has_nan({"a": [(torch.ones(2), bad)]})
    assert not trees.has_nan([torch.ones(2), torch.ones(2).int(), None])


def test_only_floats_are_changed():
    floats, whole = trees.mapped([torch.ones(2), torch.ones(2, dtype=torch.int64)], lambda each: each + 1)
    assert floats.tolist() == [2, 2] and whole.tolist() == [1, 1]
