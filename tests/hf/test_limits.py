"""What a configuration may ask for, given what its file has."""

from __future__ import annotations

import json

import pytest

from aibit_format.errors import LoadError
from aibit_format.hf import limits
from aibit_format.hf.config import build_config, empty_model
from aibit_format.hf.limits import Limits

LIMITS = Limits(tensors=10, largest=1 << 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, and at most 1000 is believed of a file with 10"),
        ({"layer_types": ["full_attention"], "n_stages": [3, 10**9]}, r"n_stages\.1 is 1000000000, and at most 1000 "),
        ({"inner": {"num_experts": 70_000}}, r"inner\.num_experts is 70000, and at most 65536"),
        ({"max_position_embeddings": 1 << 40}, "at most 16777216"),
        ({"vocab_size": 1 << 40}, "at most 1048576"),
        ({"image_size": 4096}, "at most 1024"),
        ({"hidden_size": 1 << 20}, "at most 65536"),
        ({"rope_theta": 1 << 40}, "at most 2147483648"),
        ({"id": 10**4000}, "beyond 2"),
        ({"num_labels": 10**7}, "num_labels is 10000000"),
        ({"router_dtype": "load"}, "router_dtype is 'load', expected one of"),
        ({"inner": [{"torch_dtype": "os"}]}, r"inner\.0\.torch_dtype is 'os'"),
        ({"backbone": "microsoft/resnet-50"}, "whose configuration would be fetched"),
        ({"architecture": "hf-hub:evil/evil"}, "which would be fetched"),
    ],
    ids=str,
)
def test_numbers_and_names_beyond_belief_are_refused_before_anything_is_built(change, message):
    with pytest.raises(LoadError, match=message):
        build_config({"model_type": "llama", **change}, LIMITS)


def test_a_file_with_many_tensors_may_have_many_layers():
    config = {"model_type": "llama", "num_hidden_layers": 2000}
    assert build_config(config, Limits(20_000, 1 << 20)).num_hidden_layers == 2000


def test_a_model_with_far_more_tensors_than_its_file_is_not_built():
    config = {"model_type": "llama", "num_hidden_layers": 1000, "hidden_size": 64, "vocab_size": 100}
    with pytest.raises(LoadError, match="more than 1008 tensors, which the file has not"):
        empty_model(build_config(config, Limits(1, 6400)), "LlamaForCausalLM", Limits(1, 6400))


def test_a_model_with_buffers_far_larger_than_its_file_is_not_built():
    config = {"model_type": "gptj", "n_positions": 1 << 24, "n_embd": 64, "n_head": 2, "n_layer": 1, "vocab_size": 9}
    with pytest.raises(LoadError, match=r"its buffers would have .* bytes, and at most 268435456"):
        empty_model(build_config(config, LIMITS), "GPTJForCausalLM", LIMITS)


def test_a_constructor_that_loops_without_making_tensors_is_ended(monkeypatch):
    monkeypatch.setattr(limits, "_FREE_SECONDS", 0.5)
    config = build_config({"model_type": "levit", "image_size": 1024}, LIMITS)  # pairs of points of a grid: 2^24
    with pytest.raises(LoadError, match="takes more than 1 s of a processor"):
        empty_model(config, "LevitForImageClassification", LIMITS)


@pytest.mark.parametrize("model_type", ["llava_onevision", "llava_next", "moss_transcribe_diarize", "gemma3", "llama4"])
def test_what_real_models_have_is_believed(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = json.loads(CONFIG_MAPPING[model_type]().to_json_string(use_diff=False))
    Limits(tensors=300, largest=1 << 27).check(config)
