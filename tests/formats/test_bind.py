"""Tensors of a source matched to those of a model."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import SourceError
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def _edit(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_tensor_is_named(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.pop("model.layers.0.mlp.down_proj.weight"))
    with pytest.raises(SourceError, match=r"layers\.0\.mlp\.down_proj\.weight"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_a_shape_that_contradicts_the_config_is_named(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(SourceError, match=r"model\.norm\.weight.*\[65\].*\[64\]"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_codes_without_scales_are_not_taken_for_values(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    name = "model.layers.0.mlp.up_proj.weight"
    _edit(tmp_path / "hf", lambda w: w.update({name: w[name].to(torch.int8)}))
    with pytest.raises(SourceError, match=r"up_proj\.weight' is i8, LlamaForCausalLM wants f32.*quantization_config"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_a_tensor_without_a_place_is_named_unless_a_class_is_asked_for(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"value_head.weight": torch.ones(64)}))
    with pytest.raises(SourceError, match=r"no place for value_head\.weight.*--architecture"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", architecture="LlamaForCausalLM")
    assert report.unused == ("value_head.weight",)


def test_tensors_that_a_model_computes_itself_may_be_there(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert aibit.convert(tmp_path / "hf", tmp_path / "m.aibit").unused == ()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_names_may_have_the_prefixes_of_wrappers(prefix, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({prefix + k: v for k, v in weights.items()}, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    assert aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep").unused == ()
    loaded = aibit.load_model(tmp_path / "m.aibit")
    assert torch.equal(architectures.output(loaded, "llama-untied"), architectures.output(model, "llama-untied"))


def test_names_may_have_the_prefixes_of_wrapped_parts(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    wrapped = {k.replace("self_attn.", "_orig_mod.self_attn."): v for k, v in weights.items()}
    assert wrapped.keys() != weights.keys()
    save_file(wrapped, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    assert aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep").unused == ()


def test_two_different_tensors_for_one_parameter_are_refused(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    name = "model.norm.weight"
    _edit(tmp_path / "hf", lambda w: w.update({"module." + name: w[name].clone()}))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    _edit(tmp_path / "hf", lambda w: w.update({"module." + name: w[name] + 1}))
    with pytest.raises(SourceError, match=r"'model\.norm\.weight'.*differ"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", overwrite=True)


def test_tied_tensors_that_differ_in_the_checkpoint_are_refused(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}))
    with pytest.raises(SourceError, match="ties"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
