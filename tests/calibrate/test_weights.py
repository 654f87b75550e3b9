"""Parameters have their values while they are wanted, and only then."""

from __future__ import annotations

import torch
import transformers

from aibit_format.calibrate.weights import Weights
from aibit_format.formats.bind import bind
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from tests.support import architectures


def opened(name, folder):
    architectures.save(name, folder)
    source = open_source(folder)
    model = meta_model_of(source)
    return model, Weights(model, source, bind(model, source)[0], torch.device("cpu"))


def test_a_block_has_its_values_inside_the_context_alone(tmp_path):
    model, weights = opened("llama-tied", tmp_path)
    names = [name for name in model.parameters if ".layers.1." in name]
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    with weights.within(names):
        inside = model.module.state_dict()
        assert all(torch.equal(inside[name], original[name]) for name in names)
        assert all(inside[name].device.type == "meta" for name in model.parameters if ".layers.0." in name)
    assert all(value.device.type == "meta" for value in model.module.state_dict().values())


def test_weights_that_are_stored_the_other_way_round_are_turned(tmp_path):
    model, weights = opened("gpt2", tmp_path)
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    name = "transformer.h.0.attn.c_attn.weight"
    with weights.within([name], copied=False):
        assert torch.equal(model.module.state_dict()[name], original[name])
