"""HQQ's zero points, against the library itself where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format.errors import SchemeError
from aibit_format.schemes import half_quadratic, parse


def weights(scale, seed=0):
    random = np.random.default_rng(seed)
    values = (random.standard_normal((64, 256)) * scale).astype(np.float32)
    values[random.random(values.shape) < 0.003] *= 8
    return values


def norm(error):
    return float((np.abs(error) ** 0.7).mean())


@pytest.mark.parametrize("scale", [0.02, 0.5, 3])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_are_close_to_those_of_the_library_and_as_good(bits, scale):
    quantize = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed").Quantizer.quantize
    values = weights(scale)
    codes, said = quantize(torch.from_numpy(values), nbits=bits, group_size=64, axis=1, bitpack=False, device="cpu")
    theirs = ((codes.float() - said["zero"]) * said["scale"]).numpy().reshape(values.shape)
    scheme = parse(f"int-group,bits={bits},group=64,zero=float,scale=f32,search=hqq")
    planes = scheme.encode(values, "f32")
    ours = scheme.decode(planes, values.shape, "f32")
    assert np.allclose(planes["scale"].reshape(-1), said["scale"].numpy().reshape(-1), rtol=1e-5)
    assert np.abs(planes["zero_point"].reshape(-1) - said["zero"].numpy().reshape(-1)).mean() < 0.03
    assert norm(ours - values) < 1.003 * norm(theirs - values)


def test_the_norm_falls_and_other_searches_are_not_this_one():
    values = weights(0.02)
    text = "int-group,bits=3,group=64,zero=float"
    plain, hqq = (parse(text + option) for option in ("", ",search=hqq"))
    decoded = (scheme.decode(scheme.encode(values, "f32"), values.shape, "f32") for scheme in (plain, hqq))
    errors = [norm(found - values) for found in decoded]
    assert errors[1] < 0.995 * errors[0]
    assert hqq.text == "int-group,bits=3,group=64,zero=float,search=hqq" and hqq == plain and not hqq.takes_importance
    with pytest.raises(SchemeError, match="zero=float"):
        parse("int-group,zero=code,search=hqq")


def test_short_groups_count_what_is_there():
    values = weights(0.02)[:, :70]
    scheme = parse("int-group,bits=4,group=64,zero=float,search=hqq")
    planes = scheme.encode(values, "f32")
    alone = scheme.encode(np.ascontiguousarray(values[:, 64:]), "f32")
    assert np.array_equal(planes["zero_point"][:, 1], alone["zero_point"][:, 0])


def test_the_power_is_that_of_square_roots():
    values = np.geomspace(1e-3, 1e3, 50).astype(np.float32)
    assert np.allclose(half_quadratic._power(values), values.astype(np.float64) ** 0.3, rtol=2e-3)
