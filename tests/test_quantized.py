"""Weights in schemes without a bitsandbytes layer: modules that decode a piece at a time."""

from __future__ import annotations

import copy
import sys

import architectures
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import aibit_format as aibit
from aibit_format import interop, schemes
from aibit_format.torch.kernels import decode, matmul
from aibit_format.torch.layers import dequantized
from aibit_format.torch.layers.dequantized import QuantizedEmbedding, QuantizedLinear

sys.path.insert(0, str(ROOT / "tools" / "bench"))
import exactness

SCHEMES = ["int8-absmax", "int8-absmax,group=tensor", "int8-zp", "int8-zp,group=32", "int8-outlier", "fp8-e4m3",
           "int4-group,group=32", "int4-group", "cluster", "cluster,bits=3", "gguf:q4_0", "gguf:q8_0"]  # fmt: skip


def decoded(name, folder, file):
    """The plain model with the values that the file's planes stand for."""
    plain = architectures.load(name, folder)
    with torch.no_grad():
        for key in file:
            info = file.info(key)
            if info.scheme.lossy:
                values = file.dequantize(key)
                plain.get_parameter(key).copy_(torch.from_numpy(values.T if info.transposed else values))
    return plain


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_outputs_are_those_of_the_decoded_weights(name, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(dequantized, "_PIECE", 1000)  # several pieces to a weight, the last one short
    architectures.save(name, tmp_path / "hf", torch.float32)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    model = aibit.load_model(file)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == sum(file.info(key).scheme.lossy for key in file) > 0
    start, end = file.storage.map.ctypes.data, file.storage.map.ctypes.data + file.storage.size
    for layer in layers:
        for plane in layer.planes().values():
            assert plane.numel() == 0 or start <= plane.data_ptr() < end
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


@pytest.mark.parametrize("scheme", ["int8", "int8-absmax", "int8-absmax,group=48", "int8-absmax,group=tensor",
    "int8-zp", "int8-zp,group=48", "fp8-e4m3", "fp8-e4m3,group=tensor", "int4-group,group=32", "int4-group,group=row",
    "int4-group,symmetric=1", "nf4", "gguf:q8_0", "cluster"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_torch_decodes_what_the_scheme_decodes(scheme, dtype):
    scheme, shape = schemes.parse(scheme), (37, 160)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(interop.torch_dtypes()[dtype])
    planes = scheme.encode(interop.to_numpy(values)[0], dtype)
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(shape, dtype)}
    tensors = {role: interop.to_torch(plane, dtypes[role]) for role, plane in planes.items()}
    some = [0, 7, 36]
    for rows, indices in ((slice(0, 37), slice(0, 37)), (slice(5, 9), slice(5, 9)), (torch.tensor(some), some)):
        found = decode.decode_rows(scheme, tensors, shape, dtype, rows).numpy()
        assert np.array_equal(found, scheme.decode(planes, shape, dtype)[indices])


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("rows", [1, 4, 16, 17, 200])
def test_the_int8_product_is_as_close_to_the_true_one_as_the_decoded(rows, dtype):
    scheme = schemes.make("int8-absmax")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 512)).astype(np.float32)
    planes = {role: torch.from_numpy(plane) for role, plane in scheme.encode(weight, "f32").items()}
    layer = QuantizedLinear(scheme, planes, (256, 512), interop.dtype_name(dtype))
    x = torch.from_numpy(rng.standard_normal((rows, 512)).astype(np.float32)).to(dtype)
    weights = scheme.decode({role: plane.numpy() for role, plane in planes.items()}, (256, 512), "f32")
    true = x.double() @ torch.from_numpy(weights).double().T

    def rms(product):
        return (product.double() - true).square().mean().sqrt()

    assert rms(layer(x)) <= 1.1 * rms(layer._by_pieces(x))
    assert layer._takes(x) or matmul.BF16 or not matmul.COMPILED


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("scheme = 3", "a recipe is"), ("shceme = 'int8'", "a recipe is"), ("[tensors]\na = 1", "a recipe is"),
     ("scheme = 'int9'", "unknown scheme"), ("= 3", "not TOML"), ("[tensors]\n'(' = 'int8'", "regular expression"),
     ("scheme = 'nf4,block=3'", "block_size"), ("scheme = 'nf4,block_size=63'", "63"),
     ("[tensors]\nx9 = 'int8'", "x9")],
)  # fmt: skip
def test_recipes_that_say_nothing_sensible_are_refused(text, complaint, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(aibit.AibitError, match=complaint):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", recipe_file=tmp_path / "r.toml")
    assert not (tmp_path / "m.aibit").exists()


def test_outlier_rows_are_counted_on_the_values_that_are_encoded(tmp_path):
    """An f32 checkpoint of a bf16 model: rounding can carry a row over the threshold."""
    architectures.save("mixtral", tmp_path / "hf", torch.float32)
    config = (tmp_path / "hf" / "config.json").read_text().replace('"float32"', '"bfloat16"')
    (tmp_path / "hf" / "config.json").write_text(config)
    rules = {"experts|gate": "int8-outlier,threshold=3"}
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int8-outlier,threshold=3", tensors=rules)
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    found = [file.info(name).scheme.parameters[1] for name in file if file.info(name).scheme.name == "int8-outlier"]
    assert len(found) > 8 and sum(count > 0 for count in found) > 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("rows", [1, 40])
def test_weight_only_int8_is_closer_to_the_true_product_than_llm_int8(rows, dtype, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", dtype)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    file = aibit.open(tmp_path / "m.aibit")
    fast, exact = aibit.load_model(file, weight_only=True), aibit.load_model(file)
    name = "model.layers.1.mlp.down_proj"
    layer, other = fast.get_submodule(name), exact.get_submodule(name)
    assert isinstance(layer, QuantizedLinear) and type(other).__name__ == "Linear8bitLt"
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    true = x.double() @ torch.from_numpy(file.dequantize(f"{name}.weight")).double().T

    def rms(found):
        return (found.double() - true).square().mean().sqrt()

    with torch.no_grad():
        assert rms(layer(x)) < 0.6 * rms(other(x))
    logits = architectures.output(fast, "llama-untied").float()
    assert (logits - architectures.output(exact, "llama-untied").float()).abs().max() < 0.1 * logits.abs().max()
    assert not any(type(m).__name__ == "Linear8bitLt" for m in fast.modules())


def test_products_differ_from_the_true_ones_by_no_more_than_is_stated():
    """The table of docs/benchmarks.md, of which these are bounds."""
    most = {
        "LLM.int8, bitsandbytes' and ours": (1e-2, 1e-2, 1e-2),
        "weight only, up to 16 rows": (3e-3, 3e-3, 3e-3),
        "weight only, more rows, processor with bf16": (3e-3, 3e-3, 3e-3),
        "weight only, more rows, processor without": (1e-6, 3e-4, 2e-3),
        "dequantized to the inputs' dtype, then multiplied": (1e-6, 4e-4, 3e-3),
    }
    found = exactness.errors(192, 512)
    assert {label for _, label in found} == set(most)
    for (name, label), figures in found.items():
        assert all(0 < a <= b for a, b in zip(figures, most[label], strict=True)), (name, label, figures)
    for name in {name for name, _ in found}:
        worst = max(max(found[name, label]) for label in most if label.startswith("weight only"))
        assert worst < min(found[name, "LLM.int8, bitsandbytes' and ours"])
