"""mxfp4, mxfp8 and nvfp4: small floats under scales of blocks, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.schemes import parse

# E2M1 codes 0 to 15.
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def test_every_code_of_mxfp4_the_first_element_in_the_low_nibble():
    codes = np.array([[low | (low + 1) << 4 for low in range(0, 16, 2)]], np.uint8)
    decoded = parse("mxfp4").decode({"codes": codes, "scale": np.array([[128]], np.uint8)}, (1, 16), "f32")
    assert decoded.tolist() == [[2 * value for value in VALUES]]
    assert np.signbit(decoded[0, 8])


def test_a_scale_of_mxfp4_is_for_32_columns():
    codes = np.full((1, 20), 0x22, np.uint8)  # forty ones
    planes = {"codes": codes, "scale": np.array([[127, 120]], np.uint8)}
    assert parse("mxfp4").decode(planes, (1, 40), "f32").tolist() == [[1.0] * 32 + [2.0**-7] * 8]


def test_mxfp8_has_codes_of_either_kind():
    scale = np.array([[126]], np.uint8)
    for text, code in (("mxfp8", 0x40), ("mxfp8,element=f8_e5m2", 0x40)):  # both are 2
        planes = {"codes": np.array([[code, 0xC0]], np.uint8), "scale": scale}
        assert parse(text).decode(planes, (1, 2), "f32").tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(("text", "whole"), [("nvfp4", 0.25), ("nvfp4,reciprocal=1", 4.0)])
def test_nvfp4_has_a_scale_for_16_columns_and_one_for_all(text, whole):
    planes = {
        "codes": np.full((1, 9), 0x22, np.uint8),
        "scale": np.array([[0x40, 0x38]], np.uint8),  # 2 and 1 in E4M3
        "global_scale": np.array([whole], np.float32),
    }
    assert parse(text).decode(planes, (1, 18), "f32").tolist() == [[0.5] * 16 + [0.25] * 2]


def test_stacked_experts_have_a_global_scale_each():
    shapes = {plane.role: plane.shape for plane in parse("nvfp4").planes((3, 4, 32), "bf16")}
    assert shapes == {"codes": (3, 4, 32), "scale": (3, 4, 2), "global_scale": (3, 1)}
