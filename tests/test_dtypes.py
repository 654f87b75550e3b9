"""Names, codes and values of dtypes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from aibit_format import interop
from aibit_format.dtypes import to_float32
from aibit_format.file.reader import File
from tests.support.damaged_files import path as path

pytestmark = pytest.mark.usefixtures("encoders")


@pytest.mark.parametrize("name", ["f8_e4m3", "f8_e5m2", "f8_e8m0", "bf16"])
def test_every_code_of_the_small_floats_decodes_as_in_torch(name):
    codes = np.arange(65536, dtype=np.uint16) if name == "bf16" else np.arange(256, dtype=np.uint8)
    expected = interop.to_torch(codes, name).to(torch.float32).numpy()
    assert np.array_equal(to_float32(codes, name), expected, equal_nan=True)


def test_bf16_is_the_upper_half_of_a_float(path):
    words = File(path).planes("norm")["values"]
    expected = [struct.unpack("<f", bytes(2) + int(word).to_bytes(2, "little"))[0] for word in words]
    assert File(path).dequantize("norm").tolist() == expected
