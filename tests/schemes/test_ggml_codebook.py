"""The ``iq`` types of GGML: blocks by hand; ``test_ggml`` holds them to gguf-py and llama.cpp."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from aibit_format.schemes import make
from tests.support.gguf_models import random_blocks


def decoded(name: str, block: bytes) -> np.ndarray:
    """The values of one block."""
    data = np.frombuffer(block, np.uint8)
    return make(name).decode({"blocks": data}, (32 if name == "gguf:iq4_nl" else 256,), "f32")


def test_a_nibble_of_iq4_nl_is_one_of_sixteen_values():
    found = decoded("gguf:iq4_nl", struct.pack("<e", 2) + bytes([0xF0] + 15 * [0x88]))
    assert found[[0, 1, 16, 17]].tolist() == [-254, 2, 226, 2]


def test_a_scale_of_iq4_xs_has_two_bits_in_another_field():
    scales_h, scales_l = struct.pack("<H", 0b10 | 0b11 << 14), bytes([0x01, 0, 0, 0xF0])  # 33 and 63 of 64
    found = decoded("gguf:iq4_xs", struct.pack("<e", 1) + scales_h + scales_l + bytes([0x88]) * 128)
    assert (found[:32] == 1).all() and (found[32:224] == -32).all() and (found[224:] == 31).all()


def test_seven_bits_of_signs_make_an_even_number_of_them():
    """The first word: sign bits 0 and 6 of the first eight elements, bit 3 of the second eight; a scale of 2."""
    word = 0b1000001 | 0b0001000 << 7 | 2 << 28
    found = decoded("gguf:iq3_xxs", struct.pack("<e", 1) + bytes(64) + struct.pack("<8I", word, *[0] * 7))
    assert found[:16].tolist() == [-5, 5, 5, 5, 5, 5, -5, 5, 5, 5, 5, -5, 5, 5, 5, -5]  # 4 * (2 + 1/2) / 2
    assert (found[16:32] == 5).all() and (found[32:] == 1).all()


def test_a_point_of_iq1_is_shifted_by_an_eighth():
    """Index 0 is minus one eight times; the last, 2047, one. The second group has scale 3 and the shift of minus."""
    qs, qh = bytes(4) + bytes([0xFF]) + bytes(27), struct.pack("<8H", 0, 7 | 1 << 12 | 1 << 15, *[0] * 6)
    found = decoded("gguf:iq1_s", struct.pack("<e", 8) + qs + qh)
    assert (found[:32] == -7).all() and (found[32:40] == 21).all() and (found[40:64] == -27).all()


@pytest.mark.parametrize("scale", [b"\x80\x00\x70", b"\xc0\x00\x60"])
def test_a_float16_of_iq1_m_is_finite_unless_all_bits_of_its_exponent_are_set(scale):
    blocks = random_blocks("gguf:iq1_m", (2, 256))
    blocks[0, 53:56] = np.frombuffer(scale, np.uint8)
    assert not list(make("gguf:iq1_m").bad_codes({"blocks": blocks}, ()))
    assert np.isfinite(make("gguf:iq1_m").decode({"blocks": blocks}, (2, 256), "f32")).all()
