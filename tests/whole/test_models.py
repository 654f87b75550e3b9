"""Models of every family, converted and loaded, against transformers' own 8-bit loading, bit for bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from tests.support import architectures
from tests.support.eight_bit import eight_bit
from tests.support.memory import parameters_outside

warnings.filterwarnings("ignore", message="MatMul8bitLt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", architectures.MODELS)
def test_output_equals_load_in_8bit(name, dtype, tmp_path):
    family, _ = architectures.MODELS[name]
    architectures.save(name, tmp_path / "hf", dtype)
    kept = {"experts": "keep"} if name == "mixtral" else {}  # transformers leaves experts as they are
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors=kept)
    assert report.unused == ()
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        model = aibit.load_model(file)
        assert parameters_outside(model, file) == []
    reference = eight_bit(family, tmp_path / "hf")
    assert type(model) is type(reference)
    assert {n: type(m).__name__ for n, m in model.named_modules()} == {
        n: type(m).__name__ for n, m in reference.named_modules()
    }
    assert model.is_loaded_in_8bit and not model.training
    expected, found = architectures.output(reference, name), architectures.output(model, name)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(found, expected)
    if model.can_generate():
        ids = architectures.inputs(name)["input_ids"]
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))


def test_fused_experts_have_row_scales_for_each_expert_and_stay_as_they_are(tmp_path):
    architectures.save("mixtral", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    file = aibit.open(tmp_path / "m.aibit")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    planes = file.planes(name)
    assert planes["codes"].shape == (4, 256, 64) and planes["row_absmax"].shape == (4, 256)
    model = aibit.load_model(file)
    assert np.array_equal(model.get_submodule(name).weight.numpy(), file.dequantize(name))
    assert architectures.output(model, "mixtral").isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama-untied", "gpt2", "t5"])
def test_output_on_a_gpu_equals_load_in_8bit(name, tmp_path):
    family, _ = architectures.MODELS[name]
    architectures.save(name, tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", device="cuda")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    reference = family.from_pretrained(tmp_path / "hf", quantization_config=config, device_map={"": 0}).eval()
    batch = {key: value.cuda() for key, value in architectures.inputs(name).items()}
    with torch.no_grad():
        # Codes made on a GPU may differ from those made on a CPU by one, rarely: close, not equal.
        torch.testing.assert_close(model(**batch).logits, reference(**batch).logits, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_weight_only_products_on_a_gpu_are_close_to_the_true_ones(rows, dtype, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", dtype)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", device="cuda", weight_only=True)
    name = "model.layers.1.mlp.down_proj"
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    weight = aibit.open(tmp_path / "m.aibit").dequantize(f"{name}.weight")
    true = x.double() @ torch.from_numpy(weight).double().T
    with torch.no_grad():
        found = model.get_submodule(name)(x.cuda()).cpu().double()
    assert (found - true).square().mean().sqrt() < 4e-3 * true.square().mean().sqrt()
