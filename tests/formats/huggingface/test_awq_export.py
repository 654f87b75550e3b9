"""AWQ's words by hand: eight rows in AWQ's order, for each column."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import WriteError
from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of rows in a word, from its lowest bits, as AutoAWQ packs
CODES = np.arange(64).reshape(8, 8) * 11 % 16


def stored(zeros=8):
    packed = CODES[:, ::2] << 4 | CODES[:, 1::2]
    return weight("int4-group,group=row", (8, 8), codes=packed, scale=np.arange(8),
                  zero_point=np.broadcast_to(zeros, 8))  # fmt: skip


def word(numbers):
    return sum(int(numbers[row]) << 4 * i for i, row in enumerate(ORDER))


def test_a_word_has_the_codes_of_eight_rows_of_a_column(tmp_path):
    found = laid_out(form("awq", tmp_path), stored(np.arange(8)))
    assert found.keys() == {".qweight", ".qzeros", ".scales"}
    assert found[".qweight"].view(np.uint32).tolist() == [[word(column)] for column in CODES.T]
    assert found[".qzeros"].view(np.uint32).tolist() == [[word(range(8))]]
    assert found[".scales"].tolist() == [[*range(8)]]


def test_zero_points_are_as_they_are(tmp_path):
    awq = form("awq", tmp_path)
    assert laid_out(awq, stored([15, 0, 0, 0, 0, 0, 0, 0]))[".qzeros"].tolist() == [[15]]
    with pytest.raises(WriteError, match="has zero points 16 to 16, and awq with 4 bits holds 0 to 15"):
        laid_out(awq, stored(16))


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("int-group,bits=8,group=32", (8, 32), "awq has integers of 4 bits"),
        ("int4-group,group=32", (8, 40), r"awq has whole groups of 32 columns alone, not \[8, 40\]"),
        ("int4-group,group=32,ordered=1", (8, 64), "awq has no order of columns"),
    ],
)
def test_what_is_not_held_is_said(scheme, shape, message, tmp_path):
    with pytest.raises(NotHeldError, match=message):
        form("awq", tmp_path).settings(weight(scheme, shape))


def test_the_config_is_that_of_the_source_where_it_is_still_true(tmp_path):
    assert form("awq", tmp_path).config([stored()], ["lm_head"]) == {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": -1, "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    found = form("awq", tmp_path, {"sym": True, "bits": 8, "modules_to_not_convert": ["m.q", "gate"]})
    said = found.config([stored()], [])
    assert said["sym"] is False and said["bits"] == 4 and said["modules_to_not_convert"] == ["gate"]
