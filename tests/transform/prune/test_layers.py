"""Layers get new numbers, a config loses what it says of those that are gone, and the others stay what they were."""

import json

import numpy as np
import pytest
import torch
import transformers as tf

from aibit_format.errors import RecipeError
from aibit_format.formats.in_memory import Pretrained
from aibit_format.formats.models import meta_model_of
from aibit_format.transform.prune.layers import config_keys, layer_list, layer_of
from aibit_format.transform.prune.plan import Plan
from aibit_format.transform.prune.source import Pruned
from aibit_format.transform.source import Transformed
from tests.support import architectures, decoders


def without(model, kept):
    """A model whose list of layers has some of them alone."""
    name, _ = layer_list(meta_model_of(Pretrained(model)))
    owner, _, leaf = name.rpartition(".")
    layers = model.get_submodule(name)
    setattr(model.get_submodule(owner), leaf, torch.nn.ModuleList([layers[i] for i in kept]))
    for place, layer in enumerate(model.get_submodule(name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    config = model.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)
    return model


KEPT = [0, 2, 3, 6]
MORE = {"gemma2": {"head_dim": 16}, "qwen3_moe": {"mlp_only_layers": [1, 2, 6]}}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3_text", "smollm3", "qwen3_moe", "mixtral"])
def test_a_model_of_fewer_layers_is_the_whole_one_without_the_others(name):
    more = {"num_hidden_layers": 7, "use_cache": False, **MORE.get(name, {})}
    source, expected = decoders.source_of(name, **more)
    made = Pruned(source, Plan(layers=np.array(KEPT)))
    fewer = decoders.logits(without(decoders.build(name, **more), KEPT))
    assert decoders.apart(made, fewer) < 1e-6 < decoders.apart(made, expected)
    said = json.loads(made.documents["config.json"])
    assert said["num_hidden_layers"] == 4 == layer_list(made.model)[1]
    if name in ("gemma2", "gemma3_text"):
        assert said["layer_types"] == [source.model.module.config.layer_types[i] for i in KEPT]
    if name == "smollm3":
        assert said["no_rope_layers"] == [1, 1, 0, 1]
    if name == "qwen3_moe":
        assert said["mlp_only_layers"] == [1, 3]


@pytest.mark.parametrize(("name", "key"), [("gpt2", "n_layer"), ("opt", "num_hidden_layers"),
                                           ("bert", "num_hidden_layers")])  # fmt: skip
def test_any_list_of_layers_will_do(name, key):
    family, config = architectures.MODELS[name]
    torch.manual_seed(0)
    model = family(config()).eval()
    source = Pretrained(model)
    made = Pruned(Transformed(source, meta_model_of(source)), Plan(layers=np.array([1])))
    assert json.loads(made.documents["config.json"])[key] == 1
    listed, count = layer_list(made.model)
    assert count == 1 and not [each for each in made.tensors if each.startswith(f"{listed}.1.")]
    name = next(each for each in made.tensors if layer_of(each, listed) and made.tensors[each].shape[:1] != (1,))
    before = name.replace(f"{listed}.0.", f"{listed}.1.")
    assert np.array_equal(made.planes(name)["values"], model.state_dict()[before])


def test_what_follows_from_a_place_is_refused():
    config = tf.GPT2Config(vocab_size=160, n_embd=64, n_layer=3, n_head=4, scale_attn_by_inverse_layer_idx=True)
    source = Pretrained(tf.GPT2LMHeadModel(config))
    base = Transformed(source, meta_model_of(source))
    Pruned(base, Plan(layers=np.array([0, 1])))
    with pytest.raises(
        RecipeError, match=r"layer 2 of GPT2LMHeadModel cannot become layer 1: \.attn\.\w+ is .* keep o"
    ):
        Pruned(base, Plan(layers=np.array([0, 2])))


def test_layers_that_are_sparse_by_an_interval_are_refused():
    source, _ = decoders.source_of("qwen2_moe", num_hidden_layers=4, decoder_sparse_step=2)
    with pytest.raises(
        RecipeError, match=r"Qwen2Moe\w+ cannot be pruned so: its config would have model\.layers\.0\.mlp"
    ):
        Pruned(source, Plan(layers=np.array([1, 3])))


def test_two_stacks_of_layers_are_refused():
    family, config = architectures.MODELS["t5"]
    with pytest.raises(RecipeError, match="an encoder and a decoder"):
        layer_list(meta_model_of(Pretrained(family(config()))))


def test_lists_of_a_config():
    source, _ = decoders.source_of("qwen3_moe", num_hidden_layers=3, mlp_only_layers=[0, 2])
    said = {"eos_token_id": [1, 2, 3], "layer_types": ["a", "b", "c"], "first_k_dense_replace": 2}
    keys = config_keys(source.model, said, [0, 2])
    assert keys["num_hidden_layers"] == 2 and keys["mlp_only_layers"] == [0, 1] and keys["first_k_dense_replace"] == 1
    assert "eos_token_id" not in keys and len(keys["layer_types"]) == 2
    assert (
        layer_of("model.layers.12.mlp.x", "model.layers") == (12, "mlp.x")
        and layer_of("lm_head", "model.layers") is None
    )
