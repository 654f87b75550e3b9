"""What weights lose by schemes: their names, and a model that is as it was afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format.convert.convert import prepare
from aibit_format.convert.recipe import Recipe
from aibit_format.errors import SchemeError
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text
from aibit_format.torch.evaluate.sensitivity import plain_model, searched, sensitivities
from tests.support.paths import ROOT

MODEL = ROOT / "fixtures" / "models" / "tiny-llama"
TEXT = Text(torch.arange(5, 40), 32)


@pytest.fixture(scope="module")
def conversion():
    return prepare(str(MODEL), Recipe.of("q4_k_m"))


def test_layers_embeddings_and_head_are_searched(conversion):
    names = {each.tensor.name for each in searched(conversion)}
    every = {each.tensor.name for each in conversion.tensors if each.tensor.alias_of is None}
    assert names < every and all(len(each.tensor.shape) > 1 for each in searched(conversion))
    assert {name for name in every - names if "norm" not in name} == set()


def test_a_weight_costs_what_the_model_loses_by_it_alone(conversion):
    with plain_model(conversion) as (model, _):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = sensitivities(conversion, model, TEXT, ("gguf:q4_0", "gguf:q8_0", "gguf:q4_k"))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert (found.nbytes[:, 0] < found.nbytes[:, 1]).all() and (found.costs[:, 0] > found.costs[:, 1]).all()
        assert np.isinf(found.costs[:, 2]).all()  # rows are no whole blocks of 256
        name = max(zip(found.costs[:, 0], found.names, strict=True))[1]
        changed = prepare(str(MODEL), Recipe.of("keep", [(f"^{name}$", "gguf:q4_0")]))
        with plain_model(conversion) as (reference, _):
            (weight,) = [each for each in changed.tensors if each.tensor.name == name]
            array, dtype = weight.read()
            values = weight.tensor.scheme.decode(weight.tensor.scheme.encode(array, dtype), array.shape, dtype)
            with torch.no_grad():
                model.get_parameter(name).copy_(torch.from_numpy(values))
            apart = evaluate(model, TEXT, reference).divergence
    assert apart.mean == pytest.approx(found.costs[found.names.index(name), 0], rel=0.05)


def test_weights_that_no_candidate_holds_are_named(conversion):
    with plain_model(conversion) as (model, _), pytest.raises(SchemeError, match="none of gguf:q4_k can hold it"):
        sensitivities(conversion, model, TEXT, ("gguf:q4_k",))


def test_what_a_method_saves_is_counted():
    text = ROOT / "fixtures" / "models" / "heldout.txt"
    statistics = aibit.calibrate(MODEL, [text], samples=40, length=64, hessians="")
    candidates, found = ("gguf:q4_0", "gguf:q8_0"), {}
    for method in (None, "gptq"):
        conversion = prepare(str(MODEL), Recipe.of("q4_0", method=method), calibration=statistics)
        with plain_model(conversion) as (model, _):
            found[method] = sensitivities(conversion, model, TEXT, candidates)
    assert np.array_equal(found[None].nbytes, found["gptq"].nbytes)
    layers = ["proj" in name for name in found[None].names]
    saved = found["gptq"].costs[layers] / found[None].costs[layers]
    assert (saved[:, 0] < 0.9).mean() > 0.8  # q8_0 is always rounded to nearest
    assert np.median(saved[:, 0]) < 0.8 < np.median(saved[:, 1])
