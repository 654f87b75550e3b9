"""Every token of a text is predicted once, in windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.predictions import Text, predict
from tests.support import architectures


@given(st.integers(2, 200), st.integers(2, 60), st.data())
def test_every_token_is_predicted_once_from_as_many_as_there_can_be(count, context, data):
    stride = data.draw(st.integers(1, context))
    found = []
    for start, first, end in Text(torch.arange(count), context, stride).windows:
        assert 0 <= start < first < end <= count and end - start <= context
        assert first - start >= max(1, min(first, context - stride))
        found += range(first, end)
    # Where windows do not overlap, the first token of each has nothing before it.
    left_out = set() if stride < context else set(range(0, count, stride))
    assert found == [i for i in range(1, count) if i not in left_out]


def test_predictions_are_those_of_a_forward_over_the_window(tmp_path):
    architectures.save("llama-tied", tmp_path)
    model = architectures.load("llama-tied", tmp_path)
    text = Text(torch.arange(30) % 90, 12, 5)
    for (start, first, end), (ids, logits) in zip(text.windows, predict(model, text), strict=True):
        with torch.no_grad():
            wanted = model(text.ids[None, start:end]).logits[0, first - start - 1 : -1]
        assert torch.equal(ids, text.ids[first:end]) and torch.allclose(logits, wanted, atol=1e-5)
    assert text.predicted == 29 and Text(text.ids, 12).stride == 6


@pytest.mark.parametrize("wrong", [(1, 8, 4), (9, 1, 1), (9, 8, 9)])
def test_what_cannot_be_predicted_is_an_error(wrong):
    count, context, stride = wrong
    with pytest.raises(LoadError, match="nothing to predict"):
        Text(torch.arange(count), context, stride)
