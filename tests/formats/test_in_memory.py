"""A model in memory as a source."""

from __future__ import annotations

import json

import accelerate
import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.convert.convert import convert
from tests.support import architectures
from tests.support.saved_models import NF4, QUANTIZED, Q, quantized_model, refused, same_files
from tests.support.saved_models import folder as folder
from tests.support.saved_models import saved as saved


@pytest.mark.parametrize("key", ["llama-8bit", "llama-fp4", "gpt2-nf4"])
def test_a_quantized_model_in_memory_is_taken_over(key, saved, tmp_path):
    name, options = QUANTIZED[key]
    model = quantized_model(saved / name, name, options)
    report = convert(model, tmp_path / "a.aibit")
    convert(saved / key, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    assert all(tensor.error is None for tensor in report.tensors)
    if "load_in_8bit" in options:  # a forward pass moves the scales elsewhere
        architectures.output(model, name)
        convert(model, tmp_path / "c.aibit")
        same_files(tmp_path / "a.aibit", tmp_path / "c.aibit")


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "mixtral", "t5"])
def test_a_model_in_memory_converts_as_its_directory_does(name, tmp_path):
    architectures.save(name, tmp_path / "hf")
    model = architectures.MODELS[name][0].from_pretrained(tmp_path / "hf")
    convert(model, tmp_path / "a.aibit")
    convert(tmp_path / "hf", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        config = json.loads(bytes(file.documents["config.json"]))
        assert config["architectures"] == [type(model).__name__] and config["dtype"] == "float32"
        assert file.metadata["source.kind"] == "pretrained" and len(file.metadata["source.files"]) == 0
    assert torch.isfinite(architectures.output(aibit.load_model(tmp_path / "a.aibit"), name)).all()


def test_tokenizer_and_generation_config_come_along(fixtures, tmp_path):
    folder = fixtures / "models" / "tiny-llama"
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model.generation_config.max_new_tokens = 7
    aibit.convert(model, tmp_path / "m.aibit", tokenizer=tokenizer)
    loaded, ours = aibit.load(tmp_path / "m.aibit")
    assert ours("If the")["input_ids"] == tokenizer("If the")["input_ids"]
    assert ours.chat_template == tokenizer.chat_template and loaded.generation_config.max_new_tokens == 7


def test_a_model_whose_dtype_was_changed_says_so(saved, tmp_path):
    model = architectures.MODELS["llama-tied"][0].from_pretrained(saved / "llama-tied").to(torch.bfloat16)
    convert(model, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.info("model.norm.weight").dtype == "bf16" and file.metadata["model.dtype"] == "bf16"


def test_a_repacked_model_is_refused_and_left_alone(saved, tmp_path):
    model = quantized_model(saved / "llama-tied", "llama-tied", NF4)
    weight = model.get_parameter(f"{Q}.weight")
    weight.quant_state.packing_format_for_cpu = True  # as the first forward pass leaves it, where the CPU has AVX512
    before = weight.data.clone()
    refused(model, tmp_path, f"in memory>: tensor '{Q}.weight': bitsandbytes repacked it")
    assert torch.equal(model.get_parameter(f"{Q}.weight").data, before)


def test_models_without_values_and_other_objects_are_refused(saved, tmp_path):
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(architectures.MODELS["llama-tied"][1]())
    refused(model, tmp_path, "embed_tokens.weight': is on the meta device")
    refused(torch.nn.Linear(2, 2), tmp_path, "a Linear: neither a path, a source, nor")
    refused(5, tmp_path, "a int: neither")
    model = architectures.MODELS["llama-tied"][0].from_pretrained(saved / "llama-tied")
    model.config.quantization_config = {"quant_method": "hqq"}
    refused(model, tmp_path, "quantized with 'hqq'; known in memory: bitsandbytes")


@pytest.mark.gpu
def test_a_model_on_a_gpu_converts_as_on_the_cpu(saved, tmp_path):
    convert(quantized_model(saved / "llama-tied", "llama-tied", NF4).to("cuda"), tmp_path / "a.aibit")
    convert(saved / "llama-nf4", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_that_accelerate_has_offloaded_are_read(where, saved, tmp_path):
    model = architectures.MODELS["llama-tied"][0].from_pretrained(saved / "llama-tied")
    if where == "cpu":
        accelerate.cpu_offload(model)
    else:
        accelerate.disk_offload(model, str(tmp_path / "offloaded"))
    assert model.model.norm.weight.is_meta
    convert(model, tmp_path / "a.aibit")
    convert(saved / "llama-tied", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
