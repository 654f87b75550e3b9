"""Ternary weights, against bitnet's own code in transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import schemes
from aibit_format.dtypes import to_float32
from aibit_format.errors import SchemeError
from aibit_format.interop import to_torch
from aibit_format.schemes.packing import unpack_plane
from tests.support.random_planes import random_planes

ALL = [f"ternary,scale={scale},reciprocal={reciprocal}" for scale in ("f32", "bf16", "f16") for reciprocal in (0, 1)]


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("shape", [(8, 37), (3, 8, 16)])
def test_values_are_those_of_transformers(text, shape):
    """What it packs is unpacked there; the page says what is done with the scale."""
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    scheme = schemes.parse(text)
    planes = random_planes(scheme, shape, seed=3)
    planes["scale"][..., 0] = scheme.encode(np.full(shape, 0.3, np.float32), "f32")["scale"][..., 0]
    codes = unpack_plane(planes["codes"], "u2", shape) % 3
    planes["codes"] = schemes.make("u2").encode(codes, "u2")["values"]
    flat = torch.from_numpy(codes.reshape(-1, shape[-1]).astype(np.float32)) - 1
    values = unpack_weights(pack_weights(flat), torch.float32)
    scale = to_torch(planes["scale"], scheme.whole["scale"]).float().reshape(-1, 1).repeat_interleave(shape[-2], 0)
    expected = values / scale if scheme.reciprocal else values * scale
    assert np.array_equal(scheme.decode(planes, shape, "f32").reshape(expected.shape), expected.numpy())


@pytest.mark.parametrize("shape", [(40, 130), (3, 20, 65)])
def test_encoded_values_are_those_of_the_paper(shape):
    x = (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(np.float32)
    scheme = schemes.parse("ternary,reciprocal=1")
    planes = scheme.encode(x, "f32")
    assert planes["scale"].shape == (*shape[:-2], 1)
    weight = torch.from_numpy(x)
    scale = 1.0 / weight.double().abs().mean((-2, -1), keepdim=True).float()
    assert np.array_equal(planes["scale"].reshape(-1), scale.numpy().reshape(-1))
    assert np.array_equal(scheme.decode(planes, shape, "f32"), ((weight * scale).round().clamp(-1, 1) / scale).numpy())


@pytest.mark.parametrize("text", ALL)
def test_planes_break_no_rule(text):
    scheme = schemes.parse(text)
    for shape in ((5, 7), (1, 1), (2, 0), (0, 5), (2, 0, 5), (0, 3, 5)):
        for x in (np.zeros(shape, np.float32), np.full(shape, 0.25, np.float32)):
            planes = scheme.encode(x, "f32")
            assert not list(scheme.bad_values(planes)) and not list(scheme.bad_codes(planes, shape))
            assert np.array_equal(scheme.decode(planes, shape, "f32"), x)
            if not x.any():
                assert (to_float32(planes["scale"], scheme.whole["scale"]) == 1).all()


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**121])
def test_values_that_do_not_fit_are_refused(text, value):
    x = np.ones((3, 5), np.float32)
    x[2, 4] = value
    with pytest.raises(SchemeError):
        schemes.parse(text).encode(x, "f32")


def test_what_is_wrong_is_found():
    scheme, shape = schemes.parse("ternary,reciprocal=1"), (3, 6)
    good = scheme.encode(np.ones(shape, np.float32), "f32")
    for value in (np.nan, np.inf, -1, -0.0, 0):
        found = [role for role, _ in scheme.bad_values(good | {"scale": np.array([value], np.float32)})]
        assert set(found) == {"scale"}
    assert not list(schemes.make("ternary").bad_values(good | {"scale": np.zeros(1, np.float32)}))
    for at in range(6):
        codes = good["codes"].copy()
        codes[2, at // 4] |= 3 << 2 * (at % 4)
        assert list(scheme.bad_codes(good | {"codes": codes}, shape)) == [("codes", "a code is 3")]
    with pytest.raises(SchemeError, match="above 2"):
        scheme.encode(np.full(shape, 1e-38, np.float32), "f32")
