"""The option ``search``: errors fall, weighted ones most, and files do not say that it was used."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.convert.encoders import encode
from aibit_format.dtypes import from_float32
from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.searched import groups_of

TEXTS = [
    "int4-group,group=32", "int4-group,symmetric=1", "int4-group,group=row", "int-group,bits=2,group=32",
    "int-group,bits=3,group=32,zero=code", "int-group,group=32,zero=float", "int-group,group=32,zero=bias,scale=bf16",
    "int-group,bits=8,group=row", "int-group,bits=8,zero=code", "int-group,bits=4,group=3,zero=code", "nf4", "fp4",
    "nf4,nested=1", "fp8-e4m3", "fp8-block,rows=16,columns=33", "fp8-block,rows=1,columns=all,scale=bf16", "mxfp4",
    "nvfp4", "nvfp4,reciprocal=1",
]  # fmt: skip
COARSE = ["mxfp8", "mxfp8,element=f8_e5m2", "fp8-block,rows=16,columns=33,scale=f8_e8m0"]


def values(rows=24, columns=330, seed=0):
    random = np.random.default_rng(seed)
    found = (random.standard_normal((rows, columns)) * 0.02).astype(np.float32)
    found[3, 7], found[5], found[6, :200] = 1, 0, 0
    return found


def importance(columns=330):
    return np.exp(np.random.default_rng(1).normal(0, 1.5, columns)).astype(np.float32)


def error(scheme, planes, array, weights):
    return float(((scheme.decode(planes, array.shape, "f32") - array) ** 2 * weights).sum())


@pytest.mark.parametrize("text", TEXTS + COARSE)
def test_the_weighted_error_falls(text):
    plain, scheme, array, weights = parse(text), parse(f"{text},search=1"), values(), importance()
    rounded, planes = plain.encode(array, "f32"), scheme.encode_weighted(array, "f32", weights)
    most = 1 if text in COARSE else 0.98
    assert error(plain, planes, array, weights) <= most * error(plain, rounded, array, weights)
    assert not list(scheme.bad_values(planes)) and not list(scheme.bad_codes(planes, array.shape))
    assert not list(scheme.other_forms(planes, array.shape))
    by_element = scheme.encode_weighted(array, "f32", np.tile(weights, (len(array), 1)))
    assert all(np.array_equal(by_element[role], planes[role]) for role in planes)
    assert scheme.takes_importance
    same = parse(f"{text},search=none").encode_weighted(array, "f32", weights)
    assert all(np.array_equal(same[role], rounded[role]) for role in rounded)
    same = plain.encode_weighted(array, "f32", weights)  # unless bits are promised, an importance is used
    wanted = planes if plain.takes_importance else rounded
    assert all(np.array_equal(same[role], wanted[role]) for role in rounded)
    assert plain.takes_importance == (scheme.name not in ("nf4", "fp4"))


@pytest.mark.parametrize("text", TEXTS + COARSE)
def test_rows_are_encoded_alone_where_they_are_independent(text):
    scheme, array, weights = parse(f"{text},search=1"), values(columns=320), importance(320)
    if not scheme.by_rows(array.shape):
        pytest.skip("whole tensors alone")
    whole = scheme.encode_weighted(array, "f32", weights)
    parts = [scheme.encode_weighted(array[i : i + 8], "f32", weights) for i in range(0, 24, 8)]
    assert all(np.array_equal(np.concatenate([part[role] for part in parts]), whole[role]) for role in whole)


def test_files_do_not_say_that_scales_were_searched_for():
    scheme = parse("nf4,block_size=32,search=1")
    assert scheme == parse("nf4,block_size=32") and hash(scheme) == hash(parse("nf4,block_size=32"))
    assert scheme.parameters == (32, 0) and scheme.text == "nf4,block_size=32,search=1"
    assert make("nf4", 1, scheme.parameters).text == "nf4,block_size=32"


def test_what_is_refused():
    for text in ("nf4,search=7", "mxfp4,search=3", "int4-group,search=hqq", "fp8-e4m3,search=3"):
        with pytest.raises(SchemeError, match="search"):
            parse(text)
    for text in ("ternary,search=1", "int8,search=1", "int8-zp,search=1"):  # have no choice, or promise their bits
        with pytest.raises(SchemeError, match="does not take"):
            parse(text)
    for scheme in map(parse, ("int4-group,search=1", "nf4,search=1", "fp8-e4m3,search=1", "nvfp4,search=1")):
        with pytest.raises(SchemeError, match="an importance of shape"):
            scheme.encode_weighted(values(), "f32", importance(7))


def test_groups_at_the_end_are_filled_with_what_does_not_count():
    rows = from_float32(np.arange(10, dtype=np.float32).reshape(2, 5), "bf16")
    found = groups_of(rows, "bf16", 3, np.float32([1, 2, 4, 8, 16]))
    assert found.values.shape == (4, 4) and found.weights.shape == (2, 4)
    assert (found.weights[:, 3] == 0).all() and found.weights[1, 2] == 0
    assert (found.weights[0, :3] == [0.25, 0.5, 1]).all()
    assert (groups_of(rows, "bf16", 3, None).weights[:, 3] == 0).all()


@pytest.mark.parametrize("text", TEXTS)
def test_no_elements(text):
    scheme = parse(f"{text},search=1")
    for shape in ((0, 64), (2, 0)):
        planes = scheme.encode_weighted(np.zeros(shape, np.float32), "f32", np.ones(shape[1], np.float32))
        assert [plane.role for plane in scheme.planes(shape, "f32")] == list(planes)


def test_without_data_conversions_search_where_models_gain():
    array = values()
    scheme = parse("nvfp4")
    found, formula = encode(scheme, array, "f32"), scheme.encode(array, "f32")
    assert error(scheme, found, array, 1) < 0.9 * error(scheme, formula, array, 1)
    for text in ("nvfp4,search=none", "int4-group", "mxfp4", "nf4", "fp8-e4m3"):
        scheme = parse(text)
        planes = encode(scheme, array, "f32")
        assert all(np.array_equal(planes[role], plane) for role, plane in scheme.encode(array, "f32").items())
