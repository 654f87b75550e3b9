"""What callers ask of a model that is loaded: its dtype and its attention, as ``from_pretrained`` gives them."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
import transformers
from transformers import BitsAndBytesConfig

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.hf import compat
from aibit_format.torch.layers.dequantized import Quantized
from tests.support import architectures
from tests.support.memory import parameters_outside

FLOATS = {"float32": torch.float32, "bf16": torch.bfloat16, "torch.float16": torch.float16}


def saved(name, folder, dtype=torch.float32, **options):
    architectures.save(name, folder / "hf", dtype)
    aibit.convert(folder / "hf", folder / "m.aibit", **options)
    return folder / "m.aibit"


@pytest.mark.parametrize("asked", [*FLOATS, *FLOATS.values()], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_plain_models_are_those_of_from_pretrained(stored, asked, tmp_path):
    path, dtype = saved("t5", tmp_path, stored, scheme="bf16" if stored == torch.bfloat16 else "f32"), asked
    dtype = FLOATS.get(asked, asked)
    model = aibit.load_model(path, dtype=asked)
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=dtype).eval()
    expected = dict(reference.named_parameters())
    for name, value in model.named_parameters():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name
    kept = model.encoder.block[0].layer[1].DenseReluDense.wo.weight
    assert kept.dtype == (torch.float32 if dtype == torch.float16 else dtype)  # as transformers keeps it
    assert model.dtype == reference.dtype == dtype and model.config.dtype == dtype
    assert torch.equal(architectures.output(model, "t5"), architectures.output(reference, "t5"))


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("nf4", torch.float32), ("nf4", torch.bfloat16), ("int8", torch.float32), ("int8", torch.float16)], ids=str,
)  # fmt: skip
def test_layers_of_bitsandbytes_are_those_of_from_pretrained(scheme, dtype, tmp_path):
    """Codes of a bf16 checkpoint are the same, in whatever dtype its values are held."""
    path = saved("llama-untied", tmp_path, torch.bfloat16, scheme=scheme)
    options = {"load_in_8bit": True} if scheme == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype,
    }  # fmt: skip
    family = transformers.LlamaForCausalLM
    reference = family.from_pretrained(
        tmp_path / "hf", quantization_config=BitsAndBytesConfig(**options), device_map="cpu", dtype=dtype
    ).eval()
    model = aibit.load_model(path, dtype=dtype)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            assert module.compute_dtype == dtype
    assert torch.equal(architectures.output(model, "llama-untied"), architectures.output(reference, "llama-untied"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", ["int8-absmax", "cluster,bits=4", "gguf:q8_0", "int4-group,group=32"])
def test_packed_weights_compute_as_after_a_cast(scheme, dtype, tmp_path):
    path = saved("llama-tied", tmp_path, torch.float16, scheme=scheme, tensors={"embed|lm_head": scheme})
    with aibit.open(path) as file:
        model, cast = aibit.load_model(file, dtype=dtype), aibit.load_model(path).to(dtype)
        cast.model.rotary_emb = model.model.rotary_emb  # which from_pretrained keeps in float32, and a cast does not
        packed = [module for module in model.modules() if isinstance(module, Quantized)]
        assert len(packed) == 16 and {module.weight.dtype for module in packed} == {dtype}
        norms = [name for name, _ in model.named_parameters()]
        assert {*parameters_outside(model, file)} <= {*norms}  # planes are the mapped ones
    found = architectures.output(model, "llama-tied")
    assert found.dtype == dtype and torch.equal(found, architectures.output(cast, "llama-tied"))


def test_experts_compute_in_the_dtype(tmp_path):
    path = saved("mixtral", tmp_path, torch.bfloat16, scheme="int8-absmax", tensors={"experts": "int8-absmax"})
    model, cast = aibit.load_model(path, dtype="f32"), aibit.load_model(path).float()
    assert model.model.layers[0].mlp.experts.down_proj.weight.dtype == torch.float32
    assert torch.equal(architectures.output(model, "mixtral"), architectures.output(cast, "mixtral"))


@pytest.mark.parametrize("dtype", ["float64", "int8", "auto ", 32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused(dtype, tmp_path):
    path = saved("llama-tied", tmp_path)
    with pytest.raises(LoadError, match="computes in one of float32, float16, bfloat16"):
        aibit.load_model(path, dtype=dtype)
    assert aibit.load_model(path, dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_that_of_from_pretrained(name, tmp_path):
    path = saved("llama-tied", tmp_path, scheme="f32")
    model = aibit.load_model(path, attn_implementation=name)
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation=name).eval()
    assert model.config._attn_implementation == reference.config._attn_implementation == name
    assert torch.equal(architectures.output(model, "llama-tied"), architectures.output(reference, "llama-tied"))
    with torch.no_grad():
        found = model(**architectures.inputs("llama-tied"), output_attentions=True).attentions
    assert bool(found and found[0] is not None) == (name == "eager")


def test_no_kernel_is_fetched(tmp_path, monkeypatch):
    path = saved("llama-tied", tmp_path)
    for name in ("kernels-community/flash-attn2", "owner/kernel:f", "paged|kernels-community/x", "none", "", 7):
        with pytest.raises(LoadError, match="transformers has eager, "):
            aibit.load_model(path, attn_implementation=name)
    packages = compat.inside("FLASH_ATTENTION_COMPATIBILITY_MATRIX")
    for installed in (False, True):
        monkeypatch.setitem(packages[2], "general_availability_check", lambda installed=installed: installed)
        family = transformers.LlamaForCausalLM
        monkeypatch.setattr(family, "_compatible_flash_implementations", ["owner/kernel"])
        with pytest.raises(LoadError, match="none is fetched here"):
            aibit.load_model(path, attn_implementation="flash_attention_2")
