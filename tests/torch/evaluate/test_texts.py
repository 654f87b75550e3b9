"""Where two texts part."""

from __future__ import annotations

import pytest

from aibit_format.torch.evaluate.texts import Continuation


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [((), (), 0), ((1, 2), (1, 2), 2), ((1, 2), (1, 3), 1), ((1, 2, 3), (1, 2), 2), ((4,), (5,), 0)],
)
def test_texts_share_what_they_begin_with(first, second, shared):
    assert Continuation(first, "").shared_with(Continuation(second, "")) == shared
