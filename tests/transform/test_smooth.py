"""SmoothQuant's factors are those of its formula, of norms alone, and change no logits."""

from dataclasses import replace

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.formats.sources import values
from aibit_format.transform.method import Context, parse
from aibit_format.transform.structure import decoder_of
from tests.support import decoders

CONTEXT = Context(lambda *_: None)
NORM = "model.layers.0.input_layernorm.weight"
READERS = [f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkv"]


@pytest.mark.parametrize("name", decoders.NAMES)
def test_logits_stay(name):
    source, expected = decoders.source_of(name)
    kinds = {channels.kind for channels in decoder_of(source.model).channels}
    (smooth,) = parse(["smooth"])
    if "norm" not in kinds:
        with pytest.raises(RecipeError, match="largest input of each column behind a norm"):
            smooth.apply(source, decoders.statistics(source), CONTEXT)
        return
    made, _ = smooth.apply(source, decoders.statistics(source), CONTEXT)
    assert decoders.apart(made, expected) < 2e-5
    assert made.metadata["transform.applied"] == ["smooth,alpha=0.5"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_the_formula(alpha):
    source, _ = decoders.source_of("llama")
    found = decoders.statistics(source)
    made, after = parse([f"smooth,alpha={alpha}"])[0].apply(source, found, CONTEXT)
    inputs = np.maximum.reduce([found.inputs[name].largest[0] for name in READERS])
    weights = np.maximum.reduce([np.abs(values(source, name)[0]).max(0) for name in READERS])
    factors = inputs**alpha / weights ** (1 - alpha)
    assert np.allclose(values(source, NORM)[0] / values(made, NORM)[0], factors, rtol=1e-6)
    for name in READERS:
        assert np.allclose(values(made, name)[0], values(source, name)[0] * factors, rtol=1e-6)
        assert np.allclose(after.inputs[name].largest, found.inputs[name].largest / factors, rtol=1e-6)
    up = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(values(made, up)[0], values(source, up)[0])


def test_ranges_become_equal_at_a_half():
    source, _ = decoders.source_of("llama")
    made, after = parse(["smooth"])[0].apply(source, decoders.statistics(source), CONTEXT)
    inputs = np.maximum.reduce([after.inputs[name].largest[0] for name in READERS])
    weights = np.maximum.reduce([np.abs(values(made, name)[0]).max(0) for name in READERS])
    assert np.allclose(inputs, weights, rtol=1e-5)


def test_an_imatrix_says_nothing_of_ranges():
    source, _ = decoders.source_of("llama")
    found = decoders.statistics(source)
    for name, inputs in list(found.inputs.items()):
        found.inputs[name] = replace(inputs, largest=None)
    with pytest.raises(RecipeError, match="an imatrix has sums of squares alone"):
        parse(["smooth"])[0].apply(source, found, CONTEXT)
