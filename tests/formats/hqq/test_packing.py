"""Where HQQ's codes are in bytes and words."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.hqq.packing import PACKINGS, unpack


@pytest.mark.parametrize("packing", PACKINGS)
def test_blocks_of_rows_share_an_element_the_first_in_the_highest_bits(packing):
    _, count, bits = PACKINGS[packing]
    codes = np.random.RandomState(0).randint(0, 1 << bits, (count * 3, 5)).astype(np.uint8)
    blocks = codes.reshape(count, 3, 5).astype(np.uint32)
    packed = sum(block << (bits * (count - 1 - place)) for place, block in enumerate(blocks))
    stored = np.asarray(packed).astype(np.int32 if packing == "3bit_32" else np.uint8)
    assert np.array_equal(unpack(stored, packing, len(codes)), codes)
    assert np.array_equal(unpack(stored, packing, len(codes) - 1), codes[:-1])
