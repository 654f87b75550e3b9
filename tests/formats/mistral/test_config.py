"""Mistral's settings: which model they are of, the numbers of its rotation, and what is refused."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.meta.params import Params
from aibit_format.formats.mistral.config import check, config_of, merges_patches, sizes_of

PARAMS = {"dim": 64, "n_layers": 2, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
          "vocab_size": 160}  # fmt: skip
YARN = {"original_max_position_embeddings": 4, "factor": 16, "beta": 32, "alpha": 1}
VISION = {"hidden_size": 32, "image_size": 64, "patch_size": 8, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 2}  # fmt: skip
MERGES = {"mm_projector_id": "patch_merge", "add_pre_mm_projector_layer_norm": True, "spatial_merge_size": 2}


def params(**said):
    return Params("params.json", PARAMS | said)


def config(**said):
    found = params(**said)
    check(found)
    return config_of(found, sizes_of(found))


def test_a_head_is_its_own_size_or_a_share():
    assert config()["head_dim"] == 16 and config(head_dim=24)["head_dim"] == 24
    assert sizes_of(params(head_dim=24))["queries"] == 96


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({}, "mistral"), ({"moe": {"num_experts": 4, "num_experts_per_tok": 2}}, "mixtral"),
        ({"yarn": YARN, "llama_4_scaling": {"beta": 0.1}}, "ministral3"),
        ({"vision_encoder": VISION | MERGES}, "mistral3"), ({"vision_encoder": VISION}, "llava"),
    ],
)  # fmt: skip
def test_what_is_there_says_which_model_it_is(said, kind):
    assert config(**said)["model_type"] == kind


def test_a_model_that_sees_has_its_text_inside():
    found = config(vision_encoder=VISION | MERGES, tied_embeddings=True)
    text, vision = found["text_config"], found["vision_config"]
    assert found["tie_word_embeddings"] is True and "tie_word_embeddings" not in text and "architectures" not in text
    assert (text["hidden_size"], vision["hidden_size"], vision["num_channels"]) == (64, 32, 3)
    assert found["spatial_merge_size"] == 2 and sizes_of(params(vision_encoder=VISION | MERGES))["vision.merged"] == 128
    assert text["max_position_embeddings"] == 131072 and config()["max_position_embeddings"] == 32768


def test_a_rotation_is_stretched_as_yarn_says():
    found = config(yarn=YARN, rope_theta=1e6, llama_4_scaling={"beta": 0.1})["rope_parameters"]
    assert found == {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 4,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    assert config(yarn=None)["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_the_context_is_the_first_of_two_keys():
    assert config(max_seq_len=8)["max_position_embeddings"] == 8
    assert config(max_seq_len=8, max_position_embeddings="16")["max_position_embeddings"] == 16
    assert config()["sliding_window"] is None and config(sliding_window=8)["sliding_window"] == 8


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"unheard": 1}, "key 'unheard' means something"), ({"audio": {}}, "key 'audio' belongs to a model"),
        ({"causal": False}, "causal is False, expected True"),
        ({"moe": {"num_experts": 0, "num_experts_per_tok": 2}}, "moe: num_experts is 0"),
        ({"moe": {"num_experts": 2}, "vision_encoder": VISION}, "moe is 'there beside vision_encoder'"),
        ({"vision_encoder": VISION | {"extra": 1}}, "vision_encoder: key 'extra'"),
        ({"vision_encoder": VISION | {"num_attention_heads": 32}}, "num_attention_heads is 32, expected heads"),
        ({"yarn": YARN | {"alpha": 0}}, "yarn: alpha is 0, expected a number above 0"),
        ({"quantization": {"qformat_weight": None}}, "qformat_weight is None, expected 'fp8_e4m3'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_its_key(said, message):
    with pytest.raises(SourceError, match=rf"params\.json: .*{message}"):
        config(**said)


def test_patches_are_merged_with_a_norm_before_or_not_at_all():
    assert merges_patches(params(vision_encoder=MERGES)) and not merges_patches(params(vision_encoder={}))
    for wrong in (MERGES | {"add_pre_mm_projector_layer_norm": False}, {"add_pre_mm_projector_layer_norm": True},
                  {"mm_projector_id": 3}):  # fmt: skip
        with pytest.raises(SourceError, match="vision_encoder"):
            merges_patches(params(vision_encoder=wrong))
