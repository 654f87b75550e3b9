"""Layers that round their inputs to 8 bits, in whole models."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.interop import to_torch
from aibit_format.schemes import parse
from aibit_format.torch.kernels import w8a8
from aibit_format.torch.layers.dequantized import QuantizedLinear
from aibit_format.torch.layers.experts import QuantizedExperts
from aibit_format.torch.layers.w8a8 import W8A8Linear
from tests.support import calibrated
from tests.support.memory import place_in_file
from tests.support.w8a8 import TEXTS, reference, weight_of

IDS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module", params=["llama-tied", "gpt2"])
def source(request, tmp_path_factory):
    """A model directory with a tokenizer, and a file of its statistics."""
    folder, text = calibrated.save(request.param, tmp_path_factory.mktemp("w8a8") / "hf")
    calibrate(folder, [text], folder.parent / "s.safetensors", samples=3, length=24)
    return folder, folder.parent / "s.safetensors"


def converted(source, text, path):
    folder, statistics = source
    aibit.convert(folder, path, text, calibration=statistics if "static" in text else None)
    return aibit.open(path, verify="full")


def layer_of(text, shape, bias=None):
    weight = weight_of(text, shape)
    return W8A8Linear(weight.scheme, weight.planes, shape, "f32", bias)


@pytest.mark.parametrize("text", TEXTS)
def test_a_model_computes_as_one_whose_layers_are_the_spec(source, text, tmp_path):
    file = converted(source, text, tmp_path / "m.aibit")
    model = aibit.load_model(file)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, W8A8Linear)}
    assert len(layers) == sum(file.info(name).scheme.name == text.partition(",")[0] for name in file) >= 8
    place = place_in_file(file)
    assert all(place(plane) is not None for layer in layers.values() for plane in layer.planes().values())
    found = model(IDS).logits
    fused = {name.rpartition(".")[2] for name, layer in layers.items() if layer.fused is not None}
    together = {"gate_proj", "up_proj"} if "model.layers.0.mlp.up_proj" in layers else set()
    assert fused == (together if text == "int8-dynamic" else set())  # each layer may state another scale
    for layer in layers.values():
        layer.forward = lambda x, layer=layer: reference(
            x.reshape(-1, layer.in_features), layer.planes(), layer.bias
        ).view(*x.shape[:-1], -1)
    assert torch.equal(found, model(IDS).logits) and found.isfinite().all()


@pytest.mark.parametrize("text", TEXTS)
def test_weight_only_leaves_inputs_as_they_are(source, text, tmp_path):
    file = converted(source, text, tmp_path / "m.aibit")
    exact = aibit.load_model(file, weight_only=True, dtype="float32")
    assert not any(isinstance(module, W8A8Linear) for module in exact.modules())
    layers = [module for module in exact.modules() if isinstance(module, QuantizedLinear)]
    x = torch.randn(3, layers[0].in_features)
    bias = 0 if layers[0].bias is None else layers[0].bias
    torch.testing.assert_close(layers[0](x), x @ layers[0].weight.T + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("weight_only", [False, True], ids=["", "weight only"])
def test_a_model_is_one_graph_with_the_same_outputs(source, text, weight_only, tmp_path):
    model = aibit.load_model(converted(source, text, tmp_path / "m.aibit"), weight_only=weight_only)
    compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", TEXTS)
def test_a_layer_keeps_shape_and_dtype_of_its_input(text, dtype):
    bias = nn.Parameter(torch.linspace(-1, 1, 48), requires_grad=False)
    layer = layer_of(text, (48, 64), bias).eval()
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = layer(x)
    assert found.dtype == dtype and torch.equal(found.view(6, 48), reference(x.view(6, 64), layer.planes(), bias))
    assert layer(x[:0]).shape == (0, 3, 48)
    assert torch.equal(layer.bfloat16()(x), found) or layer.bias.dtype == torch.bfloat16  # planes stay what they are


def test_sums_of_rows_belong_to_the_codes_that_are_there(monkeypatch):
    monkeypatch.setattr(w8a8, "COMPILED", False)
    layer, x = layer_of("int8-static,asymmetric=1", (8, 32)), torch.randn(4, 32)
    layer(x)
    kept = layer._row_sums.sums
    assert kept is not None and layer(x) is not None and layer._row_sums.sums is kept
    other = copy.deepcopy(layer)
    assert other._row_sums.sums is None
    other.codes.neg_()
    assert torch.equal(other(x), reference(x, other.planes(), None))
    layer.codes = -layer.codes
    assert torch.equal(layer(x), reference(x, layer.planes(), None))


def test_a_layer_on_the_meta_device_says_the_shape():
    layer = layer_of("int8-static,asymmetric=1", (48, 64)).to("meta")
    assert layer(torch.empty(2, 5, 64, device="meta", dtype=torch.bfloat16)).shape == (2, 5, 48)


@pytest.mark.parametrize("text", TEXTS)
def test_experts_round_what_is_routed_to_them(text):
    values = np.random.default_rng(1).standard_normal((3, 48, 64)).astype(np.float32)
    low, high = np.array([-1, -2, -3], np.float32), np.array([3, 2, 1], np.float32)
    scheme = parse(text).calibrated(low, high)
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(values.shape, "f32")}
    planes = {role: to_torch(plane, dtypes[role]) for role, plane in scheme.encode(values, "f32").items()}
    experts = QuantizedExperts(scheme, planes, values.shape, "f32", transposed=False, multiply=w8a8.linear)
    x = torch.randn(5, 64)
    for e in range(3):
        mine = {role: plane[e] for role, plane in planes.items()}
        assert torch.equal(nn.functional.linear(x, experts[e]), reference(x, mine, None))
        assert torch.equal(x @ experts[e].T, reference(x, mine, None))


def test_a_model_of_experts(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", "int8-dynamic")
    loaded = aibit.load_model(tmp_path / "m.aibit")
    stacks = [module for module in loaded.modules() if isinstance(module, QuantizedExperts)]
    assert len(stacks) == 4
    with torch.no_grad():
        found, expected = loaded(IDS).logits, model(IDS).logits
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    exact = aibit.load_model(tmp_path / "m.aibit", weight_only=True)
    assert not torch.equal(exact(IDS).logits, found)
    gc.collect()
