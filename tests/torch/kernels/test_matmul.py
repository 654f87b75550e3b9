"""Products with codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format import interop, schemes
from aibit_format.torch.kernels import functional, matmul
from aibit_format.torch.layers.dequantized import QuantizedLinear
from tests.support import architectures
from tools.bench import exactness


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

    assert rms(layer(x)) <= 1.1 * rms(functional.by_pieces(x, layer.shape, layer.rows))
    assert functional.uses_codes(layer._product, x, None) or matmul.BF16 or not matmul.COMPILED


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("scheme", ["int8", "int8-absmax"])
def test_inputs_in_float64_are_not_rounded(scheme, rows, fast, monkeypatch):
    monkeypatch.setattr(matmul, "BF16", fast)
    monkeypatch.setattr(matmul, "IN_FLOAT32", matmul.COMPILED and not fast)
    scheme, rng = schemes.make(scheme), np.random.default_rng(0)
    weight = rng.standard_normal((64, 128)).astype(np.float32)
    planes = scheme.encode(weight, "f32")
    x = torch.from_numpy(rng.standard_normal((rows, 128)))
    layer = QuantizedLinear(scheme, {role: torch.from_numpy(each) for role, each in planes.items()}, (64, 128), "f64")
    true = x @ torch.from_numpy(scheme.decode(planes, (64, 128), "f32")).double().T
    torch.testing.assert_close(layer(x), true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slow", [False, True])
def test_prompts_in_16_bits_are_multiplied_in_float32_where_16_bits_are_slow(slow, monkeypatch):
    monkeypatch.setattr(matmul, "FP16", not slow)
    weight, seen = torch.randn(96, 64), []

    def rows(part, dtype):
        seen.append(dtype)
        return weight[part].to(dtype)

    x = torch.randn(20, 64).half()
    found = functional.by_pieces(x, (96, 64), rows)
    assert found.dtype == torch.float16 and set(seen) == {torch.float32 if slow else torch.float16}
    torch.testing.assert_close(found.float(), x.float() @ weight.T, rtol=1e-2, atol=1e-2)


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
