"""Eight-bit floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import from_float32, to_float32
from aibit_format.interop import to_torch
from aibit_format.schemes.base import TENSOR
from tests.support.eight_bit_weights import F32, FP8, encoded, steps_of, weights


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("text", FP8)
@pytest.mark.parametrize("scale", [1, 1e-5, 500])
def test_fp8_codes_are_those_of_torchs_cast(text, dtype, scale):
    x = weights((200, 300), dtype=dtype, scale=scale)
    scheme, planes = encoded(text, x, dtype)
    source = to_torch(x, dtype).float()
    largest = source.abs().amax() if scheme.group == TENSOR else source.abs().amax(dim=1, keepdim=True)
    steps = largest / 448
    assert np.array_equal(planes["scale"].reshape(steps.shape), steps.numpy())
    codes = (source / torch.where(steps == 0, 1, steps)).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert np.array_equal(planes["codes"], codes.view(torch.uint8).numpy())
    assert np.array_equal(scheme.decode(planes, x.shape, dtype), (codes.float() * steps).numpy())


def test_fp8_rounds_every_pattern_as_torch_does():
    """All bfloat16 values up to 448, and all midpoints of E4M3 with their float32 neighbours."""
    table = to_float32(np.arange(0x7F, dtype=np.uint8), "f8_e4m3")
    middles = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(F32)
    bf16 = to_float32(np.arange(0x43E1, dtype=np.uint16), "bf16")
    x = np.concatenate([table, middles, np.nextafter(middles, F32(0)), np.nextafter(middles, F32(1e9)), bf16])
    x = np.concatenate([x, -x])[None]
    _, planes = encoded("fp8-e4m3", x, "f32")
    assert x.max() == 448 and planes["scale"].item() == 1
    codes = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(planes["codes"], codes)
    assert np.array_equal(planes["codes"], from_float32(x, "f8_e4m3"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FP8), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70), st.integers(-149, 120))
def test_fp8_error_is_half_a_step(text, seed, height, width, exponent):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((height, width)) * 2.0 ** rng.integers(-14, 5, (height, width))
    x = np.ldexp(x, exponent).astype(F32)
    scheme, planes = encoded(text, x, "f32")
    values, scale = x.astype(np.float64), steps_of(planes, "scale", x).astype(np.float64)
    error = np.abs(scheme.decode(planes, x.shape, "f32") - values)
    bound = np.maximum(np.abs(values) / 16, scale / 1024) * (1 + 2.0**-20)
    assert (error <= np.where(scale == 0, 2.0**-117, bound)).all()


def test_bad_fp8_is_found():
    scheme, good = encoded("fp8-e4m3", weights((4, 40)), "f32")
    for code in (0x7F, 0xFF):
        planes = good | {"codes": good["codes"].copy()}
        planes["codes"][3, 39] = code
        assert list(scheme.bad_codes(planes, (4, 40))) == [("codes", "a code is NaN")]
    planes = good | {"scale": -good["scale"]}
    assert [role for role, _ in scheme.bad_values(planes)] == ["scale"]
