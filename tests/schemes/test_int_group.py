"""Integers in groups, with zero points, biases and orders, against compressed-tensors and the formulas of the field."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format import schemes
from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.errors import SchemeError
from aibit_format.interop import to_torch
from aibit_format.schemes.base import bad_tails
from aibit_format.schemes.int_group import BITS
from tests.support.random_planes import random_planes

ZEROS = ("none", "code", "float", "bias")
SCALES = ("f16", "bf16", "f32")


def unpacked(packed, bits, columns):
    """Codes of rows, one bit at a time."""
    found = np.unpackbits(packed, axis=-1, bitorder="little")[..., : columns * bits]
    return (found.reshape(*packed.shape[:-1], columns, bits) << np.arange(bits)).sum(-1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("shape", "group"), [((3, 70), "32"), ((2, 3, 41), "8"), ((4, 37), "row")])
def test_values_are_those_of_the_formula(bits, zero, scale, shape, group):
    scheme = schemes.parse(f"int-group,bits={bits},group={group},zero={zero},scale={scale}")
    planes = random_planes(scheme, shape)
    codes = unpacked(planes["codes"], bits, shape[-1]).astype(np.float32)
    index = np.arange(shape[-1]) // int(group) if group != "row" else np.zeros(shape[-1], np.intp)
    spread = {
        spec.role: to_float32(planes[spec.role], spec.dtype)[..., index]
        for spec in scheme.planes(shape, "f32") if spec.role != "codes"
    }  # fmt: skip
    with np.errstate(over="ignore"):
        expected = {
            "none": lambda: (codes - np.float32(2.0 ** (bits - 1))) * spread["scale"],
            "code": lambda: (codes - spread["zero_point"]) * spread["scale"],
            "float": lambda: (codes - spread["zero_point"]) * spread["scale"],
            "bias": lambda: codes * spread["scale"] + spread["bias"],
        }[zero]()
    assert np.array_equal(scheme.decode(planes, shape, "f32"), expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [32, 0])
def test_values_are_those_of_compressed_tensors(bits, group):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    shape, half = (16, 96), 1 << (bits - 1)
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    for zero in ("none", "code"):
        scheme = schemes.make("int-group", 1, (bits, group, DTYPES["bf16"].code, scheme_zero(zero), 0))
        planes = random_planes(scheme, shape)
        if zero == "code":
            planes["zero_point"] &= (1 << bits) - 1
        codes = torch.from_numpy(unpacked(planes["codes"], bits, 96).astype(np.int16)) - half
        points = torch.from_numpy(planes["zero_point"].astype(np.int16)) - half if zero == "code" else None
        arguments = quantization.QuantizationArgs(num_bits=bits, type="int", symmetric=zero == "none", **strategy)
        scale = to_torch(planes["scale"], "bf16").float()
        expected = dequantize(codes, scale, points, arguments, torch.float32)
        assert np.array_equal(scheme.decode(planes, shape, "f32"), expected.numpy())


def scheme_zero(word):
    return schemes.make("int-group").words["zero"][word]


@pytest.mark.parametrize("zero", ["none", "code"])
def test_codes_are_those_of_compressed_tensors(zero):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    arguments = quantization.QuantizationArgs(num_bits=4, type="int", symmetric=zero == "none", strategy="group",
                                              group_size=32)  # fmt: skip
    blocks = torch.from_numpy(x).view(16, 2, 32)
    scale, points = calculate_qparams(blocks.amin(2), blocks.amax(2), arguments)
    scheme = schemes.parse(f"int-group,group=32,zero={zero},scale=f32")
    planes = scheme.encode(x, "f32")
    assert np.array_equal(planes["scale"], scale.numpy())
    if zero == "code":
        assert np.array_equal(planes["zero_point"], points.numpy() + 8)
    codes = quantize(torch.from_numpy(x), scale, points, arguments).numpy() + 8
    assert np.array_equal(unpacked(planes["codes"], 4, 64), codes)


def test_columns_in_another_order():
    scheme, shape = schemes.parse("int-group,bits=3,group=16,zero=code,ordered=1"), (2, 5, 40)
    planes = random_planes(scheme, shape)
    assert planes["group_index"].shape == (40,)
    index = planes["group_index"]
    codes = unpacked(planes["codes"], 3, 40).astype(np.float32)
    expected = (codes - planes["zero_point"][..., index]) * planes["scale"][..., index].astype(np.float32)
    assert np.array_equal(scheme.decode(planes, shape, "f32"), expected)
    with pytest.raises(SchemeError, match="order of columns"):
        scheme.encode(np.zeros(shape, np.float32), "f32")
    for value in (-1, 3):
        wrong = index.copy()
        wrong[39] = value
        assert [role for role, _ in scheme.bad_values(planes | {"group_index": wrong, "zero_point": 0 * planes["zero_point"]})] == ["group_index"]  # fmt: skip  # noqa: E501


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(BITS), st.sampled_from(ZEROS), st.sampled_from(SCALES), st.integers(0, 2**32 - 1),
       st.integers(1, 9), st.integers(1, 70), st.integers(-30, 10))  # fmt: skip
def test_error_is_half_a_step(bits, zero, scale, seed, height, width, exponent):
    scheme = schemes.parse(f"int-group,bits={bits},group=16,zero={zero},scale={scale}")
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.standard_normal((height, width)), exponent).astype(np.float32)
    planes = scheme.encode(x, "f32")
    specs = scheme.planes(x.shape, "f32")
    problems = (scheme.bad_values(planes), scheme.bad_codes(planes, x.shape), bad_tails(specs, planes))
    assert not [problem for found in problems for problem in found]
    index = np.arange(width) // 16
    step = to_float32(planes["scale"], scale).astype(np.float64)[:, index]
    spread = np.array([[np.abs(row[index == g]).max() for g in index] for row in x])
    # A code at the end of the range, and the roundings of scale, zero point and bias.
    loss = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-22}[scale]
    least = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 0}[scale]
    ends = 1 if zero in ("none", "code") else 0.5
    bound = step * ends + 4 * spread * loss + (1 << bits) * least
    assert (np.abs(scheme.decode(planes, x.shape, "f32") - x) <= bound).all()


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("scale", SCALES)
def test_zeros_stay_zeros_with_scale_1(zero, scale):
    scheme = schemes.parse(f"int-group,zero={zero},scale={scale},group=8")
    planes = scheme.encode(np.array([[0.0, -0.0] * 8], np.float32), "f32")
    assert (to_float32(planes["scale"], scale) == 1).all()
    assert not scheme.decode(planes, (1, 16), "f32").any()
    for role in planes.keys() - {"scale", "codes"}:
        assert not planes[role].view(np.uint8).any()  # not even the sign of a zero


def test_bad_values_are_found():
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    for zero, role in (("none", "scale"), ("float", "zero_point"), ("bias", "bias")):
        scheme = schemes.parse(f"int-group,group=16,zero={zero}")
        planes = scheme.encode(x, "f32")
        for value in (np.nan, np.inf):
            wrong = planes[role].copy()
            wrong[3, 1] = value
            assert [found for found, _ in scheme.bad_values(planes | {role: wrong})] == [role]
        assert not list(scheme.bad_values(planes | {role: -planes[role]}))  # any may be negative
    for bits in BITS:
        scheme = schemes.make("int-group", 1, (bits, 16, DTYPES["f16"].code, scheme_zero("code"), 0))
        planes = scheme.encode(x, "f32")
        planes["zero_point"][0, 0] = min(1 << bits, 255)
        assert not list(scheme.bad_values(planes))
        if bits < 8:
            planes["zero_point"][0, 0] += 1
            assert [role for role, _ in scheme.bad_values(planes)] == ["zero_point"]


@pytest.mark.parametrize("text", ["bits=0", "bits=7", "bits=9", "group=65537", "scale=13", "scale=16", "zero=4",
                                  "ordered=2", "group=row,ordered=1"])  # fmt: skip
def test_other_parameters_are_refused(text):
    with pytest.raises(SchemeError) as caught:
        schemes.parse(f"int-group,{text}")
    assert caught.value.code == "AIB-E407"


def test_scales_beyond_float16_are_refused():
    x = np.full((1, 8), 1e9, np.float32)
    with pytest.raises(SchemeError, match="too large"):
        schemes.parse("int-group").encode(x, "f32")
    assert schemes.parse("int-group,scale=bf16").encode(x, "f32")["scale"] == from_float32(
        np.float32([[2e9 / 15]]), "bf16"
    )
