"""What GPTQ's and AWQ's forms hold, and what they do not: widths, groups, zero points, scales of the source's dtype."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import WriteError
from aibit_format.formats.huggingface.forms import NotHeldError
from aibit_format.formats.huggingface.packed_export import Settings
from tests.support.forms import form, laid_out, weight


@pytest.fixture
def gptq(tmp_path):
    return form("gptq", tmp_path)


def test_settings_say_what_is_equal_for_all_weights(gptq):
    found = gptq.settings(weight("int4-group,group=32", (8, 32)))
    assert found == Settings(4, 32, False) and str(found) == "4 bits, with zero points, in groups of 32"
    assert str(Settings(3, 0, True)) == "3 bits, symmetric, in groups of a row"
    assert gptq.settings(weight("int-group,bits=3,group=32", (32, 32))) == Settings(3, 32, True)


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("int-group,bits=5,group=32", (32, 32), "integers of 2 or 3 or 4 or 8 bits with scales f16 alone"),
        ("int-group,group=32,scale=f32", (8, 32), "with scales f16 alone"),
        ("int-group,group=32,zero=bias", (8, 32), "with scales f16 alone"),
        ("mxfp4", (8, 32), "with scales f16 alone"),
        ("int4-group,group=32", (12, 32), r"matrices in multiples of 8 alone, not \[12, 32\]"),
        ("int-group,bits=3,group=32", (8, 32), r"in multiples of 32 alone"),
        ("int-group,bits=4,group=32", (2, 8, 32), r"in multiples of 8 alone, not \[2, 8, 32\]"),
        ("int-group,group=8", (8, 32), "gptq has no groups of 8"),
    ],
)
def test_what_is_not_held_is_said(scheme, shape, message, gptq):
    with pytest.raises(NotHeldError, match=message):
        gptq.settings(weight(scheme, shape))


def test_scales_are_transposed_and_of_the_dtype_of_the_source(tmp_path, gptq):
    stored = weight("int4-group,group=row,symmetric=1", (8, 8), codes=np.zeros(32), scale=np.arange(8) / 8)
    assert laid_out(gptq, stored)[".scales"].tolist() == [[each / 8 for each in range(8)]]
    wide = form("gptq", tmp_path, {"bits": 4}, [".scales f32 2"])
    found = laid_out(wide, stored)[".scales"]
    assert found.dtype == np.float32 and found.tolist() == [[each / 8 for each in range(8)]]


def test_scales_that_the_dtype_of_the_source_does_not_hold_are_an_error(tmp_path):
    stored = weight("int4-group,group=row,symmetric=1", (8, 8), codes=np.zeros(32), scale=[1 + 2**-10] * 8)
    narrow = form("gptq", tmp_path, {"bits": 4}, [".scales bf16 2"])
    with pytest.raises(WriteError, match=r"'m\.q\.weight': has scales that bf16, the dtype of the source's, does not"):
        laid_out(narrow, stored)


def test_a_symmetric_zero_point_is_the_middle(gptq):
    """As AutoGPTQ's first format has it, less one."""
    stored = weight("int-group,bits=8,group=row", (8, 8), codes=np.zeros(64), scale=np.ones(8))
    assert laid_out(gptq, stored)[".qzeros"].view(np.uint8).tolist() == [[127] * 8]
