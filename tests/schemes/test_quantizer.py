"""What GPTQ needs of a scheme: parameters with codes stand for the values that the scheme decodes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from aibit_format import schemes
from aibit_format.errors import SchemeError
from aibit_format.schemes import capabilities

GROUPS = [
    "int4-group", "int4-group,group=32", "int4-group,group=row", "int4-group,group=64,symmetric=1", "int-group,bits=2",
    "int-group,bits=3,group=48,zero=code", "int-group,bits=5,zero=float,scale=bf16",
    "int-group,bits=8,zero=bias,scale=f32",
]  # fmt: skip
KINDS = ["q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]
SCHEMES = [*GROUPS, *(f"gguf:{kind}" for kind in KINDS)]
ROWS, COLUMNS = 5, 512


def quantizer_of(text, columns=COLUMNS):
    scheme = schemes.parse(text)
    return scheme, capabilities.find(scheme, "quantizer")(scheme, columns)


def values_of(columns=COLUMNS, seed=0):
    return np.random.default_rng(seed).standard_normal((ROWS, columns)).astype(np.float32)


def rounded(quantizer, values, weights):
    """Codes of rounding to nearest, what they stand for, and what was found, span by span."""
    codes, meant, found = np.empty(values.shape, np.uint8), np.empty_like(values), []
    for start in range(0, values.shape[1], quantizer.span):
        part = slice(start, start + quantizer.span)
        found.append(quantizer.find(values[:, part], weights[part]))
        parameters = quantizer.parameters(found[-1])
        width = values[:, part].shape[1]
        scale, zero, offset = np.repeat(parameters, quantizer.group, axis=1)[:, :width].swapaxes(1, 2)
        scaled = (values[:, part] - offset) / np.where(scale == 0, 1, scale)
        if quantizer.book is None:
            codes[:, part] = np.clip(np.rint(scaled + zero), 0, quantizer.high)
            meant[:, part] = (codes[:, part] - zero) * scale + offset
        else:
            codes[:, part] = np.searchsorted(quantizer.book[:15], scaled)
            meant[:, part] = quantizer.book[15:][codes[:, part]] * scale + offset
    return codes, meant, found


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("columns", [COLUMNS, 256])
def test_parameters_and_codes_stand_for_what_is_decoded(text, columns):
    scheme, quantizer = quantizer_of(text, columns)
    values, weights = values_of(columns), np.random.default_rng(1).random(columns).astype(np.float32)
    codes, meant, found = rounded(quantizer, values, weights)
    planes = quantizer.planes(codes, found)
    specs = scheme.planes(values.shape, "f32")
    assert {role: plane.dtype for role, plane in planes.items()} == {
        spec.role: schemes.base.DTYPES[spec.dtype].numpy for spec in specs
    }
    shaped = {spec.role: planes[spec.role].reshape(spec.stored) for spec in specs}
    assert not [*scheme.bad_values(shaped), *scheme.bad_codes(shaped, values.shape)]
    assert np.array_equal(scheme.decode(shaped, values.shape, "f32"), meant)
    other = np.random.default_rng(2).integers(0, quantizer.high + 1, codes.shape).astype(np.uint8)  # any will do
    planes = {spec.role: plane.reshape(spec.stored) for spec, plane in
              zip(specs, (quantizer.planes(other, found)[spec.role] for spec in specs), strict=True)}  # fmt: skip
    assert scheme.decode(planes, values.shape, "f32").shape == values.shape


@pytest.mark.parametrize("text", SCHEMES)
def test_weights_are_where_the_error_is_small(text):
    _, quantizer = quantizer_of(text)
    values = values_of()
    weights = np.exp(np.random.default_rng(3).normal(0, 3, COLUMNS)).astype(np.float32)
    error = {}
    for label, given in {"weighted": weights, "alike": np.ones(COLUMNS, np.float32)}.items():
        _, meant, _ = rounded(quantizer, values, given)
        error[label] = float((weights * (values - meant).astype(np.float64) ** 2).sum())
    assert error["weighted"] < (0.97 if "bits=8" not in text else 1) * error["alike"]


@pytest.mark.parametrize("text", SCHEMES)
def test_what_cannot_be_rounded_is_refused(text):
    _, quantizer = quantizer_of(text)
    for bad in (np.nan, np.inf):
        values = values_of()[:, : quantizer.span]
        values[2, 3] = bad
        with pytest.raises(SchemeError, match="finite"):
            quantizer.find(values, np.ones(quantizer.span, np.float32))


@pytest.mark.parametrize("text", SCHEMES)
def test_columns_without_weight_are_rounded_all_the_same(text):
    _, quantizer = quantizer_of(text)
    values = values_of()
    _, meant, _ = rounded(quantizer, values, np.zeros(COLUMNS, np.float32))
    assert np.abs(values - meant).max() < (3 if re.search("2_k|3_k|bits=[23]", text) else 1)


@pytest.mark.parametrize("text", GROUPS)
def test_a_column_that_matters_more_than_all_others_is_exact(text):
    _, quantizer = quantizer_of(text)
    values = values_of()
    _, meant, _ = rounded(quantizer, values, np.eye(1, COLUMNS, 3, dtype=np.float32)[0] + np.float32(1e-7))
    assert np.abs(values - meant)[:, 3].max() < 0.02 and np.abs(meant).max() < 8


@pytest.mark.parametrize("text", ["int4-group,ordered=1", "int-group,ordered=1", "gguf:q8_0", "gguf:iq2_s"])
def test_schemes_without_a_quantizer(text):
    assert quantizer_of(text)[1] is None


@pytest.mark.parametrize("text", ["nf4", "int8", "f16", "gguf:q4_0,version=2"])
def test_schemes_that_are_not_registered(text):
    assert not capabilities.has(schemes.parse(text), "quantizer")
