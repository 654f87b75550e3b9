"""Fields of GGML's blocks, and the order of codes in them."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SchemeError
from aibit_format.schemes import ggml_numpy
from aibit_format.schemes.ggml_layout import Layout, grouped, half_is_not_finite

LAYOUT = Layout(4, {"d": 2, "qs": 3, "m": 2}, lambda f, ops: f["d"] * f["qs"])


@pytest.mark.parametrize(
    ("bits", "width", "codes"),
    [
        (4, 1, [1, 2, 3, 4, 5, 6, 7, 8]),  # neighbours in one byte
        (4, 2, [1, 3, 2, 4, 5, 7, 6, 8]),
        (4, 4, [1, 3, 5, 7, 2, 4, 6, 8]),
        (2, 2, [1, 3, 0, 0, 2, 0, 0, 1, 1, 3, 1, 1, 2, 0, 1, 2]),
    ],
)
def test_codes_lie_in_runs_of_bytes(bits, width, codes):
    assert ggml_numpy.spread(np.array([[0x21, 0x43, 0x65, 0x87]], np.uint8), bits, width).tolist() == [codes]


def test_fields_are_split_and_joined_again():
    blocks = np.array([[0x00, 0x3C, 1, 2, 3, 0x00, 0xC0]], np.uint8)
    fields = LAYOUT.split(blocks, ggml_numpy)
    assert LAYOUT.size == 7 and fields["d"].tolist() == [[1]] and fields["m"].tolist() == [[-2]]
    assert LAYOUT.join(fields).tobytes() == blocks.tobytes()
    with pytest.raises(SchemeError, match="beyond float16's 65504"):
        LAYOUT.join(fields | {"m": np.array([[7e4]], np.float32)})
    assert grouped(fields["qs"], 3).shape == (1, 3, 1)


def test_scales_are_looked_at_whatever_they_are():
    blocks = np.array([[0, 0x3C, 1, 2, 3, 0, 0x7C], [0, 0, 0, 0, 0, 0, 0]], np.uint8)
    assert list(LAYOUT.scales) == ["d", "m"] and LAYOUT.bad_scales(blocks) == ["m"]
    other = Layout(4, {"d": 1, "qs": 6}, lambda f, ops: f["qs"], other_scales={"d": lambda d: d > 9})
    assert list(other.scales) == ["d"] and other.bad_scales(blocks) == []
    assert other.bad_scales(blocks + np.uint8(10)) == ["d"]
    assert other.split(blocks, ggml_numpy)["d"].dtype == np.uint8  # of one byte, so no float16


@pytest.mark.parametrize(("bits", "wrong"), [(0x7BFF, False), (0x7C00, True), (0xFC00, True), (0x7C01, True)])
def test_a_float16_is_finite_unless_all_bits_of_its_exponent_are_set(bits, wrong):
    assert half_is_not_finite(np.array([[bits & 0xFF, bits >> 8]], np.uint8)).tolist() == [wrong]
