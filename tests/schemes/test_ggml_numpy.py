"""The operations of GGML's decoders with numpy, on bytes by hand."""

from __future__ import annotations

import numpy as np

from aibit_format.schemes import ggml_numpy as ops

BYTES = np.array([[0x21, 0x43, 0x65, 0x87]], np.uint8)


def test_codes_are_unpacked_by_runs_of_bytes():
    assert ops.spread(BYTES, 4, 4).tolist() == [[1, 3, 5, 7, 2, 4, 6, 8]]
    assert ops.spread(BYTES, 4, 2).tolist() == [[1, 3, 2, 4, 5, 7, 6, 8]]
    assert ops.spread(BYTES[:, :1], 2, 1).tolist() == [[1, 0, 2, 0]]
    assert ops.spread(BYTES[:, :1], 1, 1).tolist() == [[1, 0, 0, 0, 0, 1, 0, 0]]


def test_words_are_little_endian_and_their_codes_begin_at_the_lowest_bits():
    assert ops.words(BYTES, 2).tolist() == [[0x4321, 0x8765]] and ops.words(BYTES, 4).tolist() == [[0x87654321]]
    assert ops.words(np.repeat(BYTES, 2, 1)[:, ::2], 2).tolist() == [[0x4321, 0x8765]]  # of a view with gaps too
    assert ops.four(ops.words(BYTES, 2), 3).tolist() == [[[1, 4, 4, 1], [5, 4, 5, 3]]]


def test_numbers_are_read_as_what_they_are():
    assert ops.signed(np.array([[0xFF, 0x7F]], np.uint8)).tolist() == [[-1, 127]]
    assert (ops.wide(BYTES) << 8).tolist() == [[0x2100, 0x4300, 0x6500, 0x8700]]
    halves = np.array([[0x00, 0x3C], [0x00, 0xC0]], np.uint8)
    assert ops.half(halves).tolist() == [[1], [-2]] and ops.to_f32(BYTES).dtype == np.float32
    assert ops.join([BYTES, BYTES[:, :1]]).tolist() == [[0x21, 0x43, 0x65, 0x87, 0x21]]


def test_entries_are_looked_up_and_values_negated_by_bits():
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert ops.take(table, np.array([[3, 0]])).tolist() == [[[6, 7], [0, 1]]]
    values = np.arange(8, dtype=np.float32)[None]
    found = ops.negated(values.copy(), np.array([[0b10000011]], np.uint8))
    assert found.tolist() == [[0, -1, 2, 3, 4, 5, 6, -7]] and np.signbit(found[0, 0])
