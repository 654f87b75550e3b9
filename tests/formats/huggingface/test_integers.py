"""Codes out of schemes of integers, in the orders in which checkpoints store them."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.integers import (
    Integers,
    codes,
    integers_of,
    packed_words,
    stream,
    word_count,
    words,
)
from aibit_format.schemes import parse


@pytest.mark.parametrize(
    ("scheme", "found"),
    [
        ("int4-group,group=32", Integers(4, 32, "f16", "code", False)),
        ("int4-group,group=64,symmetric=1,ordered=1", Integers(4, 64, "f16", "none", True)),
        ("int-group,bits=3,group=64,scale=bf16,zero=bias", Integers(3, 64, "bf16", "bias", False)),
        ("int-group,bits=8,group=row,scale=f32,zero=float", Integers(8, 0, "f32", "float", False)),
        ("nf4", None), ("mxfp4", None), ("int8-absmax", None),
    ],
)  # fmt: skip
def test_what_a_scheme_holds_is_one_description(scheme, found):
    assert integers_of(parse(scheme)) == found


def test_both_schemes_give_the_same_codes_and_the_same_stream():
    """One has the first of two codes in the high bits, the other in the low ones."""
    high, low = {"codes": np.array([[0x12, 0x3F]], np.uint8)}, {"codes": np.array([[0x21, 0xF3]], np.uint8)}
    pairs = ((parse("int4-group,group=row"), high), (parse("int-group,bits=4,group=row"), low))
    for scheme, planes in pairs:
        assert codes(scheme, planes, 4).tolist() == [[1, 2, 3, 15]] and codes(scheme, planes, 3).tolist() == [[1, 2, 3]]
        assert stream(scheme, planes).tobytes() == b"\x21\xf3"


def test_codes_of_three_bits_lie_across_bytes():
    scheme = parse("int-group,bits=3,group=row")
    packed = np.array([[0b11_010_001, 0b0_101_100_0]], np.uint8)
    assert codes(scheme, {"codes": packed}, 5).tolist() == [[1, 2, 3, 4, 5]]


def test_words_are_little_endian_and_end_with_zeros():
    assert words(np.array([[1, 2, 3, 4, 5]], np.uint8)).tolist() == [[0x04030201, 5]]
    assert words(np.full((2, 4), 0xFF, np.uint8)).tolist() == [[-1], [-1]]
    assert words(np.zeros((2, 0), np.uint8)).shape == (2, 0)
    assert packed_words(np.arange(8, dtype=np.uint8)[None], 4).tolist() == [[0x76543210]]
    numbers = np.array([[7] * 10 + [1, 6]], np.uint8)  # the eleventh of 3 bits crosses into the second word
    assert packed_words(numbers, 3).view(np.uint32).tolist() == [[0x3FFFFFFF | 1 << 30, 6 << 1]]


@pytest.mark.parametrize(("columns", "bits", "count"), [(8, 4, 1), (9, 4, 2), (32, 3, 3), (11, 3, 2), (0, 4, 0)])
def test_a_row_is_whole_words(columns, bits, count):
    assert word_count(columns, bits) == count == packed_words(np.zeros((1, columns), np.uint8), bits).shape[1]
