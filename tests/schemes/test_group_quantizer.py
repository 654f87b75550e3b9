"""The search for scales and zero points of groups, for GPTQ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aibit_format import schemes
from aibit_format.schemes.group_quantizer import int4_group_quantizer, int_group_quantizer


def error_of(quantizer, values, weights, found):
    scale, zero, offset = quantizer.parameters(found)[:, 0, :, None]
    codes = np.clip(np.rint((values - offset) / scale + zero), 0, quantizer.high)
    rest = values - ((codes - zero) * scale + offset)
    return (weights * rest.astype(np.float64) ** 2).sum(axis=1)


@pytest.mark.parametrize("symmetric", [0, 1])
def test_the_error_is_near_the_least_that_there_is(symmetric):
    random = np.random.default_rng(symmetric)
    scheme = schemes.parse(f"int4-group,group=16,symmetric={symmetric}")
    quantizer = int4_group_quantizer(scheme, 16)
    values = random.standard_t(3, (40, 16)).astype(np.float32)
    weights = np.exp(random.normal(0, 2, 16)).astype(np.float32)
    found = error_of(quantizer, values, weights, quantizer.find(values, weights))
    least = np.full(40, np.inf)
    zeros = [8.0] if symmetric else range(16)
    signs = (1, -1) if symmetric else (1,)
    reach = np.abs(values).max(axis=1, keepdims=True)
    for share, zero, sign in itertools.product(np.linspace(0.02, 1.2, 400), zeros, signs):
        scale = (sign * share * reach * np.float32(2 / 15)).astype(np.float16).astype(np.float32)
        rest = values - (np.clip(np.rint(values / scale + zero), 0, 15) - zero) * scale
        least = np.minimum(least, (weights * rest.astype(np.float64) ** 2).sum(axis=1))
    assert found.sum() < 1.1 * least.sum()


@pytest.mark.parametrize("text", ["zero=none", "zero=code", "zero=float", "zero=bias", "bits=2", "bits=8,scale=f32"])
def test_no_group_has_a_larger_error_than_with_plain_rounding(text):
    scheme = schemes.parse(f"int-group,group=32,{text}")
    quantizer = int_group_quantizer(scheme, 32)
    random = np.random.default_rng(0)
    values = (random.standard_normal((200, 32)) * np.exp(random.normal(0, 4, (200, 1)))).astype(np.float32)
    values[:3], values[3, 1:] = 0, 0
    weights = np.exp(random.normal(0, 2, 32)).astype(np.float32)
    plain = {role: plane.reshape(-1) for role, plane in scheme.encode(values, "f32").items() if role != "codes"}
    found = error_of(quantizer, values, weights, quantizer.find(values, weights))
    usual = error_of(quantizer, values, weights, plain)
    assert (found <= usual * (1 + 1e-5)).all() and found.sum() < 0.99 * usual.sum()


def test_a_short_group_at_the_end():
    scheme = schemes.parse("int4-group,group=32")
    quantizer = int4_group_quantizer(scheme, 40)
    values = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    assert quantizer.find(values, np.ones(8, np.float32))["scale"].shape == (3,)
    codes = np.zeros((3, 39), np.uint8)
    numbers = {"scale": np.ones(3, np.float16), "zero_point": np.zeros(3, np.uint8)}
    planes = quantizer.planes(codes, [numbers, numbers])
    assert planes["codes"].shape == (3, 20) and planes["scale"].shape == (3, 2)


def test_codes_go_into_the_planes_of_their_scheme():
    scheme = schemes.parse("int-group,bits=3,group=8,zero=code")
    quantizer = int_group_quantizer(scheme, 16)
    codes = np.arange(16, dtype=np.uint8).reshape(1, 16) % 8
    found = [{"scale": np.full(1, s, np.float16), "zero_point": np.full(1, z, np.uint8)} for s, z in ((1, 0), (2, 3))]
    planes = quantizer.planes(codes, found)
    expected = [*range(8), *(2 * (code - 3) for code in range(8))]
    assert scheme.decode(planes, (1, 16), "f32").tolist() == [expected]
