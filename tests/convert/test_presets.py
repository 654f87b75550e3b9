"""llama.cpp's mixtures: which tensors get which type, in models of any architecture."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.convert.presets import PRESETS, _kind, assignments
from aibit_format.hf.limits import Limits
from aibit_format.hf.meta_model import build_meta_model
from tests.support import architectures

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64, "num_attention_heads": 8}


def planned(name, config, architecture, has_importance=False):
    model = build_meta_model(config.to_dict() | {"dtype": "float32"}, Limits.of([1 << 30]), architecture)
    return {key: each.name.removeprefix("gguf:") for key, each in assignments(name, model, has_importance).items()}


def llama(name, layers=32, heads=8, tied=False, **options):
    config = tf.LlamaConfig(**LLAMA, num_hidden_layers=layers, num_key_value_heads=heads, tie_word_embeddings=tied)
    return planned(name, config, "LlamaForCausalLM", **options)


def layers_of(found, module, kind):
    return [int(key.split(".")[2]) for key, each in found.items() if module in key and each == kind]


def test_layers_with_more_bits_are_those_of_llama_cpp():
    found = llama("q4_k_m")
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_of(found, "down_proj", "q6_k") == layers_of(found, "v_proj", "q6_k") == more
    rest = {each for key, each in found.items() if not any(part in key for part in ("down_proj", "v_proj", "lm_head"))}
    assert rest == {"q4_k"} and found["lm_head.weight"] == "q6_k" and found["model.embed_tokens.weight"] == "q4_k"
    assert not any("norm" in key for key in found)
    found = llama("q4_k_s")
    assert layers_of(found, "v_proj", "q5_k") == layers_of(found, "down_proj", "q5_k") == [0, 1, 2, 3]
    found = llama("q3_k_m")
    assert layers_of(found, "v_proj", "q5_k") == layers_of(found, "down_proj", "q5_k") == [0, 1]
    assert len(layers_of(found, "down_proj", "q4_k")) == 30 and len(layers_of(found, "o_proj", "q4_k")) == 32
    assert len(layers_of(llama("q2_k"), "down_proj", "q3_k")) == 32


def test_what_heads_importance_and_ties_change():
    for name, alone, shared in (("iq4_xs", "iq4_xs", "q5_k"), ("q2_k", "q3_k", "q4_k"), ("q2_k_s", "q2_k", "q4_k")):
        for heads, kind in ((8, alone), (4, alone), (2, shared)):
            assert set(layers_of(llama(name, 8, heads), "v_proj", kind)) == set(range(8))
    assert layers_of(llama("iq4_xs", 16), "down_proj", "q5_k") == [0, 1]
    assert not layers_of(llama("iq4_xs", 16, has_importance=True), "down_proj", "q5_k")
    assert layers_of(llama("q4_0", 16, has_importance=True), "down_proj", "q4_1") == [0, 1]
    assert set(llama("q4_0").values()) == {"q4_0", "q6_k"} and set(llama("q8_0").values()) == {"q8_0"}
    tied = llama("q4_k_m", 2, tied=True)
    assert tied["model.embed_tokens.weight"] == "q6_k"


def test_eight_experts_have_better_attention_and_routers_stay():
    config = {**LLAMA, "num_hidden_layers": 8, "num_key_value_heads": 2, "num_local_experts": 8}
    found = planned("q4_k_m", tf.MixtralConfig(**config), "MixtralForCausalLM")
    for module, kind in (("k_proj", "q8_0"), ("v_proj", "q8_0"), ("o_proj", "q5_k")):
        assert {each for key, each in found.items() if module in key} == {kind}
    assert not any(".gate.weight" in key for key in found)
    down = {int(key.split(".")[2]): each for key, each in found.items() if key.endswith("experts.down_proj")}
    assert down == {0: "q6_k", 1: "q4_k", 2: "q4_k", 3: "q6_k", 4: "q4_k", 5: "q4_k", 6: "q6_k", 7: "q6_k"}


@pytest.mark.parametrize(("name", "kind"), [
    ("transformer.h.0.attn.c_attn.weight", "attn_qkv"), ("transformer.h.0.mlp.c_proj.weight", "ffn_down"),
    ("transformer.h.0.attn.c_proj.weight", "attn_output"), ("bert.encoder.layer.1.output.dense.weight", "ffn_down"),
    ("encoder.layer.1.attention.output.dense.weight", "attn_output"), ("model.layers.0.mlp.gate.weight", "router"),
    ("encoder.layer.1.attention.self.value.weight", "attn_v"), ("model.layers.0.mlp.gate_proj.weight", ""),
    ("encoder.block.0.layer.0.SelfAttention.v.weight", "attn_v"), ("model.layers.0.self_attn.q_proj.weight", ""),
    ("encoder.block.0.layer.0.SelfAttention.o.weight", "attn_output"), ("layers.3.feed_forward.w2.weight", "ffn_down"),
    ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "ffn_down"), ("model.decoder.layers.0.fc2.weight", "ffn_down"),
    ("h.1.self_attention.query_key_value.weight", "attn_qkv"), ("h.1.mlp.dense_4h_to_h.weight", "ffn_down"),
    ("h.1.self_attention.dense.weight", "attn_output"), ("model.layers.0.self_attn.k_proj.weight", "attn_k"),
])  # fmt: skip
def test_kinds_of_weights_by_the_names_of_architectures(name, kind):
    assert _kind(name) == kind


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_converts_and_says_what_rows_are_too_short_for(preset, tmp_path):
    """Rows of 64 hold no block of 256; rows of 96 neither."""
    architectures.save("llama-tied", tmp_path / "hf", intermediate_size=96)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=preset)
    found = {each.name: each for each in report.tensors}
    down = found["model.layers.0.mlp.down_proj.weight"]
    fallbacks = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "iq4_xs": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
    wanted = (down.replaced or down.scheme).removeprefix("gguf:")
    assert down.scheme == f"gguf:{fallbacks.get(wanted, wanted)}" and bool(down.replaced) == (wanted in fallbacks)
    assert found["model.embed_tokens.weight"].scheme == "gguf:q8_0"
    assert found["model.norm.weight"].scheme == "f32" and not report.unquantized.get("embeddings")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert file.metadata["quantization.recipe"] == [f"*={preset}"]


def test_rules_override_a_preset_and_rows_of_any_length_are_kept(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", intermediate_size=100)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="q4_k_m", tensors={"lm_head": "keep"})
    found = {each.name: each for each in report.tensors}
    assert found["lm_head.weight"].scheme == "f32" and found["lm_head.weight"].replaced is None
    down = found["model.layers.1.mlp.down_proj.weight"]
    assert (down.scheme, down.replaced) == ("f32", "gguf:q6_k")
    with pytest.raises(aibit.AibitError, match="rows of whole blocks of 256"):
        aibit.convert(tmp_path / "hf", tmp_path / "n.aibit", scheme="q4_k_m", tensors={"up_proj": "gguf:q4_k"})
    model = aibit.load_model(tmp_path / "m.aibit")
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(1, 9)[None]).logits).all()
