"""Streams of codes, and planes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.formats.huggingface.modules import listed, plane_of, stream_codes
from aibit_format.schemes.packing import pack, unpack


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_a_stream_of_words_is_a_plane_of_its_own_width_or_of_bytes(bits, columns, seed):
    codes = np.random.RandomState(seed).randint(0, 1 << bits, (3, columns)).astype(np.uint8)
    stream = pack(codes, bits, "little")
    words = np.zeros((3, -(-columns * bits // 32) * 4), np.uint8)
    words[:, : stream.shape[1]] = stream
    assert np.array_equal(stream_codes(words.view("<i4"), bits, columns, "u8"), codes)
    if bits != 7:
        assert np.array_equal(stream_codes(words.view("<i4"), bits, columns, f"u{bits}"), stream)
    if stream.shape[1] < words.shape[1]:
        words[1, -1] = 1
        with pytest.raises(ValueError, match="after the last code"):
            stream_codes(words.view("<i4"), bits, columns, "u8")


def test_codes_beyond_their_bits_are_refused():
    codes = np.arange(16, dtype=np.uint8)[None]
    assert np.array_equal(unpack(plane_of(codes, 4, "u4"), 4, 16, "little"), codes)
    with pytest.raises(ValueError, match="a code is 15, beyond 3 bits"):
        plane_of(codes, 3, "u3")


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c" and listed("abcde") == "a, b, c and 2 more"
