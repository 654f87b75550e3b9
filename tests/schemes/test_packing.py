"""Codes of one to eight bits in bytes."""

import numpy as np
import pytest

from aibit_format.dtypes import DTYPES
from aibit_format.schemes.base import PlaneSpec, bad_tails
from aibit_format.schemes.packing import (
    bad_tail,
    pack,
    pack_nibbles,
    pack_plane,
    unpack,
    unpack_nibbles,
    unpack_plane,
)

ORDERS = pytest.mark.parametrize("bitorder", ["big", "little"])
PACKED = [name for name, dtype in DTYPES.items() if dtype.is_packed]


def by_hand(row, bits, bitorder):
    if bitorder == "little":
        number = sum(int(code) << i * bits for i, code in enumerate(row))
        return list(number.to_bytes(-(-len(row) * bits // 8), "little"))
    text = "".join(f"{code:0{bits}b}" for code in row)
    return [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]


@ORDERS
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 13])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_are_bits_in_order_and_each_starts_a_byte(bits, count, bitorder):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (2, 3, count)).astype(np.uint8)
    packed = pack(codes, bits, bitorder)
    assert packed.shape == (2, 3, -(-count * bits // 8)) and packed.dtype == np.uint8
    assert packed.reshape(6, -1).tolist() == [by_hand(row, bits, bitorder) for row in codes.reshape(6, count)]
    assert np.array_equal(unpack(packed, bits, count, bitorder), codes)
    assert not bad_tail(packed, bits, count, bitorder)


@ORDERS
@pytest.mark.parametrize("bits", range(1, 9))
def test_without_rows_there_is_nothing_to_pack(bits, bitorder):
    packed = pack(np.zeros((0, 5), np.uint8), bits, bitorder)
    assert packed.shape == (0, -(-5 * bits // 8)) and unpack(packed, bits, 5, bitorder).shape == (0, 5)
    assert not bad_tail(packed, bits, 5, bitorder)


def test_the_first_of_two_nibbles_is_the_high_one():
    assert pack_nibbles(np.array([1, 2, 3], np.uint8)).tolist() == [0x12, 0x30]
    assert unpack_nibbles(np.array([0x12, 0x30], np.uint8), 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (3, 5), (4, 7), (5, 2), (7, 1)])
def test_a_bit_after_the_last_code_is_found(bits, count):
    for bitorder in ("big", "little"):
        spare = -count * bits % 8
        for bit in range(spare):
            packed = pack(np.full((4, count), (1 << bits) - 1, np.uint8), bits, bitorder)
            packed[2, -1] |= 1 << bit if bitorder == "big" else 0x80 >> bit
            assert bad_tail(packed, bits, count, bitorder)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 3, 5), (0, 5), (3, 0)])
def test_a_plane_has_its_elements_from_the_lowest_bit_of_each_row_up(name, shape):
    bits = DTYPES[name].bits
    codes = np.random.default_rng(1).integers(0, 1 << bits, shape, np.uint8)
    stored = pack_plane(np.asarray(codes), name)
    assert stored.shape == DTYPES[name].stored(shape) and stored.nbytes == DTYPES[name].nbytes(shape)
    columns = shape[-1] if shape else 1
    rows = np.asarray(codes).reshape(-1, columns) if columns else []
    assert stored.reshape(-1).tolist() == [byte for row in rows for byte in by_hand(row, bits, "little")]
    assert np.array_equal(unpack_plane(stored, name, shape), codes)
    assert not list(bad_tails([PlaneSpec("values", name, shape)], {"values": stored}))


def test_planes_of_known_bytes():
    """The rows of the specification, section 10 and plain.md."""
    assert pack_plane(np.array([1, 2, 3, 4, 5], np.uint8), "u3").tobytes() == bytes([0b11010001, 0b01011000])
    assert pack_plane(np.array([[2, 9, 7], [15, 0, 1]], np.uint8), "f4_e2m1").tobytes() == bytes.fromhex("92070f01")
    assert pack_plane(np.uint8(1), "u1").tobytes() == b"\1"
    bad = {"values": np.array([[0, 0x0F], [0, 0x1F]], np.uint8)}
    found = list(bad_tails([PlaneSpec("values", "u4", (2, 3))], bad))
    assert found == [("values", "a bit after the last u4 of a row is not zero")]
