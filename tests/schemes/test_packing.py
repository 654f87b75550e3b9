"""Codes of two to eight bits in bytes."""

import numpy as np
import pytest

from aibit_format.schemes.packing import bad_tail, pack, pack_nibbles, unpack, unpack_nibbles


def by_hand(row, bits):
    text = "".join(f"{code:0{bits}b}" for code in row)
    return [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 13])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_are_bits_in_order_and_each_starts_a_byte(bits, count):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (2, 3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, -(-count * bits // 8)) and packed.dtype == np.uint8
    assert packed.reshape(6, -1).tolist() == [by_hand(row, bits) for row in codes.reshape(6, count)]
    assert np.array_equal(unpack(packed, bits, count), codes)
    assert not bad_tail(packed, bits, count)


def test_the_first_of_two_nibbles_is_the_high_one():
    assert pack_nibbles(np.array([1, 2, 3], np.uint8)).tolist() == [0x12, 0x30]
    assert unpack_nibbles(np.array([0x12, 0x30], np.uint8), 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (3, 5), (4, 7), (5, 2), (7, 1)])
def test_a_bit_after_the_last_code_is_found(bits, count):
    packed = pack(np.zeros((4, count), np.uint8), bits)
    packed[2, -1] |= 1
    assert bad_tail(packed, bits, count)
