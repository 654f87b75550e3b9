"""Weights in schemes without a bitsandbytes layer: modules that decode a piece at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.torch.kernels import functional
from aibit_format.torch.layers.dequantized import QuantizedEmbedding, QuantizedLinear
from tests.support import architectures
from tests.support.memory import place_in_file
from tests.support.quantized import decoded

SCHEMES = ["int8-absmax", "int8-absmax,group=tensor", "int8-zp", "int8-zp,group=32", "int8-outlier", "fp8-e4m3",
           "int4-group,group=32", "int4-group", "cluster", "cluster,bits=3", "gguf:q4_0", "gguf:q8_0",
           "fp8-block", "fp8-block,rows=16,columns=all,scale=f8_e8m0",
           "int-group", "int-group,bits=3,group=32,zero=bias", "mxfp4", "mxfp8", "nvfp4", "ternary"]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_outputs_are_those_of_the_decoded_weights(name, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(functional, "_ON_CPU", 1000)  # several pieces to a weight, the last one short
    architectures.save(name, tmp_path / "hf", torch.float32)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    model = aibit.load_model(file)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == sum(file.info(key).scheme.lossy for key in file) > 0
    place = place_in_file(file)
    for layer in layers:
        for plane in layer.planes().values():
            assert plane.numel() == 0 or place(plane) is not None
    found = architectures.output(model, name)
    expected = architectures.output(decoded(name, tmp_path / "hf", file), name)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("scheme", ["int8-absmax", "fp8-e4m3", "gguf:q8_0", "nf4", "int8"])
def test_quantized_embeddings_decode_only_what_is_looked_up(scheme, tmp_path):
    architectures.save("llama-tied", tmp_path / "hf", torch.float32)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int8-zp", tensors={"embed|lm_head": scheme})
    file = aibit.open(tmp_path / "m.aibit")
    assert file.info("lm_head.weight").alias_of == "model.embed_tokens.weight"
    model = aibit.load_model(file)
    table = model.model.embed_tokens
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(model.lm_head, nn.Linear if scheme in ("nf4", "int8") else QuantizedLinear)
    values = file.dequantize("model.embed_tokens.weight")
    ids = torch.tensor([[5, 3, 5], [159, 0, 3]])
    assert np.array_equal(table(ids).numpy(), values[ids.numpy()])
    assert torch.equal(table.weight, torch.from_numpy(values))
    assert architectures.output(model, "llama-tied").isfinite().all()
    for wrong in (-1, 160):
        with pytest.raises(IndexError):
            table(torch.tensor([wrong]))


def test_gradients_reach_the_input(tmp_path):
    scheme = schemes.make("int8-absmax")
    weight = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    planes = {role: torch.from_numpy(plane) for role, plane in scheme.encode(weight, "f32").items()}
    layer = QuantizedLinear(scheme, planes, (48, 64), "f32", nn.Parameter(torch.ones(48)))
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(5, 64), atol=1e-4)
    assert layer.bias.grad is not None and "int8-absmax" in repr(layer)
    assert copy.deepcopy(layer)(x.detach()).shape == (5, 48)


CASTS = {"to": lambda model, dtype: model.to(dtype), "type": lambda model, dtype: model.type(dtype)}
NAMED = {torch.bfloat16: "bfloat16", torch.float16: "half", torch.float64: "double"}


@pytest.mark.parametrize("dtype", NAMED, ids=NAMED.values())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_casts_leave_planes_as_they_are(scheme, dtype, tmp_path):
    """The result is what the decoded weights give, rounded to the new dtype as the rest of the model is."""
    architectures.save("llama-untied", tmp_path / "hf", torch.float32)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme, tensors={"embed_tokens": "int8-absmax"})
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(file)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "rotary" not in name}
    exact = architectures.output(model, "llama-untied")
    getattr(model, NAMED[dtype])()
    after = dict(model.named_buffers())
    for name, buffer in before.items():
        assert after[name].dtype == buffer.dtype
        assert torch.equal(after[name].reshape(-1).view(torch.uint8), buffer.reshape(-1).view(torch.uint8)), name
    assert model.model.embed_tokens(torch.tensor([1])).dtype == dtype
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == dtype
    found = architectures.output(model, "llama-untied")
    assert found.dtype == dtype
    bound = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    assert (found.double() - exact.double()).abs().max() < bound * exact.abs().max()
    assert torch.equal(architectures.output(model.float(), "llama-untied"), exact) or dtype != torch.float64


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_layer_by_itself_is_cast(cast):
    scheme = schemes.parse("cluster,bits=4")
    planes = scheme.encode(np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32), "f32")
    tensors = {role: torch.from_numpy(np.array(plane)) for role, plane in planes.items()}
    layer = QuantizedLinear(scheme, tensors, (8, 32), "f32", nn.Parameter(torch.ones(8)))
    expected = layer.weight.bfloat16()
    cast(layer, torch.bfloat16)
    assert {role: plane.dtype for role, plane in layer.planes().items()} == {r: p.dtype for r, p in tensors.items()}
    assert layer.bias.dtype == torch.bfloat16 and torch.equal(layer.weight, expected)
    assert {plane.device.type for plane in copy.deepcopy(layer).to("meta").planes().values()} == {"meta"}
