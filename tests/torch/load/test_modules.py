"""Modules that take planes as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.dtypes import DTYPES
from aibit_format.torch.layers.dequantized import QuantizedLinear
from aibit_format.torch.load.modules import Target, builder_for, planes_for
from tests.support import architectures
from tests.support.arenas import CPU
from tests.support.arenas import on_a_cpu as on_a_cpu
from tests.support.quantized import decoded


def test_a_rule_finds_a_tied_tensor_by_any_of_its_names(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf", torch.float32)
    for pattern in ("lm_head", "embed_tokens"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors={pattern: "int8-zp"}, overwrite=True)
        file = aibit.open(tmp_path / "m.aibit")
        found = {file.info(name).scheme.name for name in ("model.embed_tokens.weight", "lm_head.weight")}
        assert found == {"int8-zp"}


def test_mixed_schemes_in_one_model(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.float32)
    recipe = tmp_path / "mixed.toml"
    rules = {"mlp": "nf4,nested=1", "down_proj": "gguf:q4_0", "lm_head": "bf16"}
    lines = ['scheme = "int8"', "[tensors]", *(f'"{pattern}" = "{scheme}"' for pattern, scheme in rules.items())]
    recipe.write_text("\n".join(lines))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", recipe_file=recipe, tensors={"q_proj": "fp8-e4m3"})
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    assert bytes(file.documents["recipe.toml"]) == recipe.read_bytes()
    assert file.metadata["quantization.recipe"] == [
        "*=int8", "mlp=nf4,nested=1", "down_proj=gguf:q4_0", "lm_head=bf16", "q_proj=fp8-e4m3",
    ]  # fmt: skip
    assert file.info("lm_head.weight").scheme.text == "bf16"
    assert file.info("model.layers.0.mlp.up_proj.weight").scheme.text == "nf4,nested=1"
    assert file.info("model.layers.1.mlp.down_proj.weight").scheme.text == "gguf:q4_0"
    assert file.info("model.layers.1.self_attn.q_proj.weight").scheme.text == "fp8-e4m3"
    model = aibit.load_model(file)
    assert model.is_loaded_in_8bit and model.is_loaded_in_4bit
    found = architectures.output(model, "llama-untied")
    expected = architectures.output(decoded("llama-untied", tmp_path / "hf", file), "llama-untied")
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    aibit.convert(tmp_path / "m.aibit", tmp_path / "again.aibit")
    assert "recipe.toml" in aibit.open(tmp_path / "again.aibit").documents


def test_tiles_are_for_a_cpu_alone(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4-cpu")
    info = aibit.open(tmp_path / "m.aibit").info("model.layers.0.mlp.up_proj.weight")
    assert [plane.role for plane in planes_for(info, Target(torch.device("cuda")))] == ["codes", "absmax"]
    assert planes_for(info, Target(CPU)) == info.planes


class Experts(nn.Module):
    """Stands for any family's: ``holds_experts`` goes by the name."""


@pytest.mark.parametrize("name", [name for name in schemes.BUILTIN if name not in DTYPES])
def test_every_scheme_stays_packed_off_the_cpu(name):
    scheme, gpu = schemes.make(name), Target(torch.device("cuda"))
    planes = tuple(SimpleNamespace(role=spec.role) for spec in scheme.planes((64, 256), "f16"))
    weight = SimpleNamespace(scheme=scheme, shape=(64, 256), dtype="f16", transposed=False, planes=planes)
    for module in (nn.Linear(256, 64, device="meta"), nn.Embedding(64, 256, device="meta")):
        assert builder_for(module, "weight", weight, gpu) is not None
    stack = SimpleNamespace(scheme=scheme, shape=(2, 64, 256), dtype="f16", transposed=False)
    assert builder_for(Experts(), "up_proj", stack, gpu) is not None
    left = {plane.role for plane in planes_for(weight, gpu)}
    assert left == {plane.role for plane in planes} - {"tiles", "tile_absmax"}


def test_linear_layers_of_a_class_of_its_own_are_quantized_and_saved_as_values(tmp_path):
    config = transformers.FalconConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, dtype="float32"
    )
    torch.manual_seed(0)
    model = transformers.FalconForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hf")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int8")
    assert report.compression_ratio > 2.5
    loaded, ids = aibit.load_model(tmp_path / "m.aibit"), torch.arange(1, 9)[None]
    assert isinstance(loaded.transformer.h[0].mlp.dense_h_to_4h, QuantizedLinear)
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.FalconForCausalLM.from_pretrained(tmp_path / "again").eval()
    with torch.inference_mode():
        found, expected, saved = (each(ids).logits for each in (loaded, model, again))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert torch.allclose(saved, found, atol=1e-4)
