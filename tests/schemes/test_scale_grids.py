"""The grids that codes are on."""

from __future__ import annotations

import pytest

from aibit_format.dtypes import largest_of
from aibit_format.schemes import scale_grids
from aibit_format.schemes.int_group import BITS


@pytest.mark.parametrize("bits", BITS)
def test_whole_numbers_are_those_of_the_bits(bits):
    signed, unsigned = scale_grids.integers(bits), scale_grids.integers_from_zero(bits)
    assert signed.high - signed.low == unsigned.high == 2**bits - 1 and unsigned.has_zero
    assert {sign * start for sign in (-1, 1) for start, _ in signed.starts} == {start for start, _ in signed.starts}
    assert any(start == 2**bits - 1 and cut == 0 for start, cut in unsigned.starts), "the whole range is tried"


@pytest.mark.parametrize("dtype", ["f4_e2m1", "f8_e4m3", "f8_e5m2"])
def test_floats_have_the_ends_of_their_dtype(dtype):
    grid = scale_grids.floats(dtype)
    assert grid.high == -grid.low == largest_of(dtype)
    assert any(start == grid.high for start, _ in grid.starts), "the whole range is tried"
