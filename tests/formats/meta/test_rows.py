"""Names of tensors with numbers in them, and the order of a head's rows."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.meta.rows import DECODER, MLP, halves, numbered


@pytest.mark.parametrize(
    ("name", "pattern", "numbers"),
    [
        ("layers.12.attention.wq", "layers.{}.attention.wq", ["12"]),
        ("layers.0.feed_forward.experts.3.w1", "layers.{}.feed_forward.experts.{}.w1", ["0", "3"]),
        ("layers.7", "layers.{}", ["7"]),
        ("output", "output", []), ("3.layers", "3.layers", []), ("layers.x1.w", "layers.x1.w", []),
        ("layers." + "1" * 10 + ".w", "layers." + "1" * 10 + ".w", []),
    ],
)  # fmt: skip
def test_numbers_are_whole_parts_of_a_name(name, pattern, numbers):
    assert numbered(name) == (pattern, numbers)


def test_even_rows_of_each_head_come_first():
    assert halves(np.arange(8)[:, None], 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert halves(np.arange(8), 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]  # a bias
    rows = np.arange(24).reshape(8, 3)
    assert np.array_equal(halves(rows, 2)[1], rows[2]) and halves(rows, 2).flags.c_contiguous


def test_every_row_is_of_one_module():
    rows = (*DECODER, *MLP)
    assert len({row.name for row in rows}) == len({row.target for row in rows}) == len(rows)
    for row in rows:
        assert row.name.count("{}") == row.target.count("{}")
        assert (row.heads is not None) == row.target.endswith(("q_proj", "k_proj"))
