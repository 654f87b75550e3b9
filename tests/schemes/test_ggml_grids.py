"""The grids of GGML's types, against gguf-py and the file beside the page."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from aibit_format.schemes.ggml_grids import GRIDS, Grid, grid
from tests.support.paths import ROOT


def test_a_bit_stands_for_each_point_there_could_be():
    """Numbers 1, 3 and 8 of nine: the first digit is the least significant one."""
    made = Grid((5, 6, 7), 2, bytes([0b0000_1010, 0b0000_0001]))
    assert made.digits.tolist() == [[1, 0], [0, 1], [2, 2]]


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_those_of_gguf_py_and_of_the_page(name):
    family = vars(gguf.quants)[{"iq1": "IQ1_S"}.get(name, name.upper())]
    family.init_grid()
    assert np.array_equal(grid(name), family.grid.reshape(family.grid_shape))
    said = json.loads((ROOT / "spec" / "schemes" / "ggml_grids.json").read_text("utf-8"))[name]
    assert [[said["values"][int(digit)] for digit in point] for point in said["points"]] == grid(name).tolist()
    assert bytes.fromhex(said["bits"]) == GRIDS[name].bits
