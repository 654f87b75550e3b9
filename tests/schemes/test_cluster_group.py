"""Codebooks with scales of groups."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SchemeError
from aibit_format.schemes import parse


def values(rows=48, columns=256, seed=0):
    random = np.random.default_rng(seed)
    found = (random.standard_normal((rows, columns)) * np.exp(random.normal(0, 1, (rows, 1))) * 0.02).astype(np.float32)
    found[3, 7], found[5] = 1, 0
    return found


def error(scheme, array, weights=1.0, importance=None):
    planes = scheme.encode_weighted(array, "f32", importance)
    assert not list(scheme.bad_values(planes)) and not list(scheme.bad_codes(planes, array.shape))
    return float(((scheme.decode(planes, array.shape, "f32") - array) ** 2 * weights).sum())


def test_bytes_by_hand():
    scheme = parse("cluster-group,bits=2,group=4")
    planes = {
        "codes": np.uint8([[0b00011011, 0b11000000]]),
        "scale": np.float16([[2, 0.5]]),
        "codebook": np.float32([-1, -0.25, 0.5, 1]),
    }
    assert scheme.decode(planes, (1, 5), "f32").tolist() == [[-2, -0.5, 1, 2, 0.5]]
    roles = [(plane.role, plane.dtype, plane.shape) for plane in scheme.planes((1, 5), "f16")]
    assert roles == [("codes", "u8", (1, 2)), ("scale", "f16", (1, 2)), ("codebook", "f32", (4,))]
    assert not list(scheme.bad_values(planes)) and not list(scheme.bad_codes(planes, (1, 5)))
    assert [role for role, _ in scheme.bad_values({**planes, "scale": np.float16([[-2, 0.5]])})] == ["scale"]
    assert [role for role, _ in scheme.bad_values({**planes, "scale": np.float16([[np.inf, 0.5]])})] == ["scale"]


def test_it_is_better_than_nf4_in_fewer_bits_and_far_better_than_one_codebook():
    array = values()
    nf4, group, row, one = (parse(t) for t in ("nf4", "cluster-group", "cluster-group,group=row", "cluster"))
    assert group.bits_per_weight((4096, 4096), "f16") < 4.2501
    assert error(group, array) < 0.9 * error(nf4, array)
    assert error(row, array) < error(one, array)


def test_what_matters_is_closer():
    array = values()
    weights = np.exp(np.random.default_rng(1).normal(0, 1.5, 256)).astype(np.float32)
    scheme = parse("cluster-group,bits=3")
    assert scheme.takes_importance
    assert error(scheme, array, weights, weights) < 0.9 * error(scheme, array, weights)


@pytest.mark.parametrize("text", ["cluster-group,bits=5,group=100", "cluster-group,bits=8,group=row", "cluster-group"])
def test_errors_are_those_of_so_many_values(text):
    scheme, array = parse(text), values()
    bound = {5: 0.08, 8: 0.02, 4: 0.15}[scheme.bits]
    assert error(scheme, array) < bound**2 * float((array**2).sum())
    planes = scheme.encode(array, "f32")
    assert (planes["scale"][5] == 0).all() and (scheme.decode(planes, array.shape, "f32")[5] == 0).all()


def test_what_is_refused():
    for text in ("cluster-group,group=65537", "cluster-group,bits=9"):
        with pytest.raises(SchemeError, match="cluster-group"):
            parse(text)
    for bad in (np.nan, 1e6):
        array = values()
        array[2, 2] = bad
        with pytest.raises(SchemeError, match="65504"):
            parse("cluster-group").encode(array, "f32")
    with pytest.raises(SchemeError, match="importance"):
        parse("cluster-group").encode_weighted(values(), "f32", np.ones(3, np.float32))
