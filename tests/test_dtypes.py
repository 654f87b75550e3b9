"""Names, codes and values of dtypes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from aibit_format import interop
from aibit_format.dtypes import BY_CODE, DTYPES, code_of, from_float32, name_of, to_float32, to_integers
from aibit_format.file.reader import File
from tests.support.damaged_files import path as path

pytestmark = pytest.mark.usefixtures("encoders")


@pytest.mark.parametrize("name", ["f8_e4m3", "f8_e5m2", "f8_e8m0", "bf16"])
def test_every_code_of_the_small_floats_decodes_as_in_torch(name):
    codes = np.arange(65536, dtype=np.uint16) if name == "bf16" else np.arange(256, dtype=np.uint8)
    expected = interop.to_torch(codes, name).to(torch.float32).numpy()
    assert np.array_equal(to_float32(codes, name), expected, equal_nan=True)


def test_small_floats_are_those_of_the_open_compute_project():
    """Tables of the OCP microscaling formats, version 1.0: zeros, the subnormals, the least and the greatest normal."""
    ends = {"f4_e2m1": (0.5, 1, 6, 1), "f6_e2m3": (0.125, 1, 7.5, 3), "f6_e3m2": (0.0625, 0.25, 28, 2)}
    for name, (least, normal, most, fraction) in ends.items():
        sign = 1 << (DTYPES[name].bits - 1)
        values = to_float32(np.arange(2 * sign, dtype=np.uint8), name)
        assert [values[0], values[1], values[1 << fraction], values[sign - 1]] == [0, least, normal, most]
        assert (np.diff(values[:sign]) > 0).all() and np.array_equal(values[sign:], -values[:sign])
        assert np.signbit(values).tolist() == [False] * sign + [True] * sign
        steps = np.diff(values[: (1 << fraction) + 1])
        assert (steps == steps[0]).all()


def test_integers_of_less_than_a_byte():
    assert to_integers(np.arange(16, dtype=np.uint8), "i4").tolist() == [*range(8), *range(-8, 0)]
    assert to_integers(np.arange(4, dtype=np.uint8), "i2").tolist() == [0, 1, -2, -1]
    for name in ("u1", "u2", "u3", "u4", "u5", "u6"):
        codes = np.arange(1 << DTYPES[name].bits, dtype=np.uint8)
        assert to_integers(codes, name).tolist() == to_float32(codes, name).tolist() == codes.tolist()


@pytest.mark.parametrize("name", ["f4_e2m1", "f6_e2m3", "f6_e3m2", "f8_e4m3"])
def test_rounding_gives_the_nearest_and_of_two_the_even_one(name):
    codes = np.arange(1 << DTYPES[name].bits, dtype=np.uint8)
    values = to_float32(codes, name)
    codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    assert np.array_equal(from_float32(values, name), codes)
    x = np.random.default_rng(0).uniform(values.min(), values.max(), 4000).astype(np.float32)
    x = np.concatenate([x, (np.sort(values)[1:] + np.sort(values)[:-1]) / 2])
    distance = np.abs(values.astype(np.float64) - x[:, None])
    nearest = distance == distance.min(axis=1, keepdims=True)
    found = from_float32(x, name)
    place = np.array([np.flatnonzero(codes == code)[0] for code in found])
    assert nearest[np.arange(len(x)), place].all()
    tied = np.array([len(set(values[row].tolist())) > 1 for row in nearest])
    assert tied.any() and not (found[tied] & 1).any()


def test_sizes_are_those_of_whole_rows():
    shapes = ((), (5,), (2, 5), (2, 0), (0, 5), (2, 3, 8))
    assert [DTYPES["u3"].nbytes(shape) for shape in shapes] == [1, 2, 4, 0, 0, 18]
    assert [DTYPES["f32"].nbytes(shape) for shape in ((), (5,), (2, 0))] == [4, 20, 0]
    assert DTYPES["u6"].nbytes((1 << 62, 1 << 62)) == (1 << 62) * ((6 << 62) // 8)
    assert {name for name, dtype in DTYPES.items() if dtype.in_numpy} == {
        "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "f32", "f64"
    }  # fmt: skip


def test_17_is_no_dtype():
    assert 17 not in BY_CODE and name_of(17) == "unknown_17" and code_of("unknown_17") == 17


def test_bf16_is_the_upper_half_of_a_float(path):
    words = File(path).planes("norm")["values"]
    expected = [struct.unpack("<f", bytes(2) + int(word).to_bytes(2, "little"))[0] for word in words]
    assert File(path).dequantize("norm").tolist() == expected
