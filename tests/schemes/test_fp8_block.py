"""fp8-block: E4M3 codes and a scale for each block of rows and columns, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.dtypes import DTYPES
from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse

ONE, TWO, MINUS_HALF = 0x38, 0x40, 0xB0  # in E4M3


def test_the_code_times_the_scale_of_its_block():
    scheme = parse("fp8-block,rows=2,columns=3")
    planes = {
        "codes": np.array([[ONE, TWO, ONE, MINUS_HALF], [ONE] * 4, [TWO] * 4], np.uint8),
        "scale": np.array([[1.5, 4.0], [0.25, 0.0]], np.float32),
    }
    wanted = [[1.5, 3.0, 1.5, -2.0], [1.5, 1.5, 1.5, 4.0], [0.5, 0.5, 0.5, 0.0]]
    assert scheme.decode(planes, (3, 4), "f32").tolist() == wanted


def test_scales_in_e8m0_are_powers_of_two():
    scheme = parse("fp8-block,rows=all,columns=all,scale=f8_e8m0")
    planes = {"codes": np.array([[ONE, TWO]], np.uint8), "scale": np.array([[127 + 3]], np.uint8)}
    assert scheme.decode(planes, (1, 2), "f32").tolist() == [[8.0, 16.0]]
    encoded = scheme.encode(np.array([[448.0, 1.0]], np.float32), "f32")
    assert encoded["scale"].tolist() == [[127]] and encoded["codes"].tolist() == [[0x7E, ONE]]
    # The least power of two that is not below 449 / 448.
    assert scheme.encode(np.array([[449.0, 0.0]], np.float32), "f32")["scale"].tolist() == [[128]]


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("", (2, 3)), (",rows=1,columns=all", (130, 1)), (",rows=all,columns=all", (1, 1)),
        (",rows=64,columns=100", (3, 4)),
    ],
)
def test_blocks_at_the_ends_are_shorter(text, scales):
    planes = parse(f"fp8-block{text}").planes((130, 301), "bf16")
    assert [(p.role, p.dtype, p.shape) for p in planes] == [("codes", "f8_e4m3", (130, 301)), ("scale", "f32", scales)]


def test_what_no_scale_can_be_is_refused():
    with pytest.raises(SchemeError, match="scale"):
        make("fp8-block", 1, (128, 128, DTYPES["f64"].code))
    with pytest.raises(SchemeError, match="65537"):
        make("fp8-block", 1, (65537, 128, DTYPES["f32"].code))
