"""In which blocks scales are, by their shapes."""

from __future__ import annotations

import pytest

from aibit_format.formats.fp8.scales import grid, scheme_of, without_blocks


def test_the_grid_has_short_blocks_at_the_ends_and_one_for_the_whole():
    assert grid((5, 130, 256), (128, 128)) == (5, 2, 2)
    assert grid((130, 256), (1, 0)) == (130, 1)
    assert grid((130, 256), (0, 0)) == (1, 1) and grid((0, 4), (0, 0)) == (0, 1)


@pytest.mark.parametrize(
    ("scales", "block"),
    [((), (0, 0)), ((1,), (0, 0)), ((3,), (0, 0)), ((3, 1, 1), (0, 0)), ((3, 8), (1, 0)), ((3, 8, 1), (1, 0)),
     ((8, 1), None), ((3, 2, 2), None)],
)  # fmt: skip
def test_experts_have_a_scale_a_row_or_a_matrix(scales, block):
    assert without_blocks((3, 8, 16), scales) == block


def test_powers_of_two_for_32_columns_are_mxfp8():
    assert scheme_of((1, 32), "f8_e8m0") == "mxfp8"
    assert scheme_of((1, 0), "f32") == "fp8-block,rows=1,columns=all,scale=f32"
