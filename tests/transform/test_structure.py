"""What is said to read what is written really does: factors that are folded leave the logits of every family alone."""

import numpy as np
import pytest
import torch

from aibit_format.errors import RecipeError
from aibit_format.formats.in_memory import Pretrained
from aibit_format.formats.models import meta_model_of
from aibit_format.transform.changes import Scale
from aibit_format.transform.fold import fold
from aibit_format.transform.structure import Port, decoder_of
from tests.support import architectures, decoders

# Norms compute in float32 whatever the model's dtype is.
CLOSE = 2e-5
NOT_ROTATED = {"gemma2", "gemma3_text", "glm4", "olmo", "olmo2", "olmo3", "exaone4", "stablelm"}


@pytest.mark.parametrize("name", decoders.NAMES)
def test_random_factors_change_nothing(name):
    source, expected = decoders.source_of(name)
    decoder, random = decoder_of(source.model), np.random.default_rng(0)
    for channels in decoder.channels:
        size = (channels.count,) if channels.matrices == 1 else (channels.matrices, channels.count)
        changes, _ = fold(source, channels, np.exp(random.normal(size=size)))
        source = source.transformed("random", changes)
    assert decoders.apart(source, expected) < CLOSE
    assert (decoder.stream is None) == (name in NOT_ROTATED) == bool(decoder.barred)


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "qwen2_moe", "gemma3_text"])
def test_a_factor_on_one_side_alone_changes_something(name):
    source, expected = decoders.source_of(name)
    for channels in decoder_of(source.model).channels:
        changes, _ = fold(source, channels, np.exp(np.random.default_rng(0).normal(size=channels.count)))
        for port in (channels.writers[0], channels.readers[0]):
            half = source.transformed("half", {port.name: changes[port.name]})
            assert decoders.apart(half, expected) > 10 * CLOSE


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "qwen2_moe", "granitemoe"])
def test_rows_beside_are_the_gates_of_the_same_channels(name):
    source, _ = decoders.source_of(name)
    for channels in (each for each in decoder_of(source.model).channels if each.kind == "gated"):
        kept = (np.arange(channels.count) % 3 > 0).astype(np.float64)
        gates = {port.name: [Scale(-2, kept, port.start)] for port in channels.beside}
        columns = {port.name: [Scale(-1, port.spread(kept), port.start)] for port in channels.readers}
        closed, unread = (source.transformed("half", each) for each in (gates, columns))
        expected = decoders.logits(decoders.rebuilt(unread))
        assert decoders.apart(closed, expected) < CLOSE < decoders.apart(source, expected)


def test_heads_share_values():
    port = Port("o", -1, 0, 3, 2)
    assert port.spread(np.array([1, 2, 3, 4])).tolist() == [1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4]
    assert port.gathered(np.array([1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 3, 3])).tolist() == [3, 4, 1, 1]
    assert Port("x", -1).spread(np.eye(2)).tolist() == np.eye(2).tolist()


def model_of(name):
    family, config = architectures.MODELS[name]
    return meta_model_of(Pretrained(family(config())))


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "t5"])
def test_other_families_are_refused_by_name(name):
    with pytest.raises(RecipeError, match=rf"model type '{name}'.*known are the decoders .*llama"):
        decoder_of(model_of(name))


@pytest.mark.parametrize(("name", "more", "message"), [
    ("olmo", {"clip_qkv": 1.0}, "OlmoForCausalLM with clip_qkv"),
    ("stablelm", {"use_parallel_residual": True}, "with use_parallel_residual"),
    ("stablelm", {"qk_layernorm": True}, r"layers\.0\.\*: its family has no self_attn\.q_layernorm"),
])  # fmt: skip
def test_what_a_config_puts_in_between_is_refused(name, more, message):
    model = decoders.build(name, torch.float32, **more)
    with pytest.raises(RecipeError, match=message):
        decoder_of(meta_model_of(Pretrained(model)))


def test_layers_that_lack_a_norm_are_refused():
    model = meta_model_of(Pretrained(decoders.build("llama", torch.float32)))
    del model.parameters["model.layers.1.input_layernorm.weight"]
    with pytest.raises(RecipeError, match=r"layers\.1\.\*: it lacks input_layernorm"):
        decoder_of(model)
    model.parameters.clear()
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no layers"):
        decoder_of(model)
