"""LLM.int8 on a CPU, computed here: equal to bitsandbytes' own layer bit for bit, alone and joined with others."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from torch import nn

from aibit_format import native
from aibit_format.torch.kernels import matmul
from aibit_format.torch.layers import linear8bit
from aibit_format.torch.layers.linear8bit import Linear8bitLt
from tests.support.linear8bit import DTYPES
from tests.support.linear8bit import _wide_models as _wide_models


@pytest.fixture(params=["compiled", "integers", "floats"])
def arithmetic(request, monkeypatch):
    """Each way of multiplying codes, whatever the processor here would choose; the last in several pieces."""
    if request.param == "compiled" and not native.available:
        pytest.skip("the compiled products are not here: no compiler, or a processor without AVX2")
    monkeypatch.setattr(linear8bit, "COMPILED", request.param == "compiled")
    monkeypatch.setattr(linear8bit, "_INTEGERS", request.param == "integers")
    monkeypatch.setattr(matmul, "_PIECE_ELEMENTS", 1000)
    monkeypatch.setattr(linear8bit, "_PIECE_ELEMENTS", 300)


def layers(dtype: torch.dtype, bias: bool, threshold: float, shape: tuple[int, int] = (48, 160)):
    """Our layer and bitsandbytes' own, over the same codes; one row of the weight is zero."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight[3] = 0
    found = []
    for kind in (Linear8bitLt, bitsandbytes.nn.Linear8bitLt):
        layer = kind(shape[1], shape[0], bias=bias, has_fp16_weights=False, threshold=threshold)
        layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
        if bias:
            layer.bias = nn.Parameter(torch.linspace(-2, 2, shape[0]), requires_grad=False)
        found.append(layer.to("cpu").eval())
    return found


def inputs(shape: tuple[int, ...], dtype: torch.dtype, outliers: bool) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp_(-5, 5)
    x[..., :40] = 0
    if outliers:
        x[..., 5], x.view(-1, shape[-1])[0, 77], x.view(-1, shape[-1])[-1, 9] = 7.5, -60, 5.999
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("outliers", "threshold"), [(False, 6.0), (True, 6.0), (True, 0.0)])
@pytest.mark.parametrize("shape", [(1, 160), (7, 160), (1, 1, 160), (2, 13, 160)], ids=str)
@pytest.mark.usefixtures("arithmetic")
def test_outputs_are_those_of_bitsandbytes_bit_for_bit(shape, outliers, threshold, bias, dtype):
    ours, theirs = layers(DTYPES[dtype], bias, threshold)
    x = inputs(shape, DTYPES[dtype], outliers)
    before = x.clone()
    with torch.no_grad():
        found, expected = ours(x), theirs(x)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert torch.equal(found, expected) and torch.equal(x, before)


def test_many_rows_are_left_to_bitsandbytes_where_floats_are_multiplied(monkeypatch):
    monkeypatch.setattr(linear8bit, "_INTEGERS", False)
    monkeypatch.setattr(linear8bit, "COMPILED", False)
    monkeypatch.setattr(linear8bit, "_MANY_ROWS", 6)
    made = []
    product = lambda layer, x: made.append(x.shape) or x.new_zeros(*x.shape[:-1], 48)  # noqa: E731
    monkeypatch.setattr(linear8bit, "fused_product", product)
    ours, theirs = layers(torch.float32, True, 6.0)
    with torch.no_grad():
        assert torch.equal(ours(inputs((7, 160), torch.float32, True)), theirs(inputs((7, 160), torch.float32, True)))
        ours(inputs((2, 3, 160), torch.float32, True))
    assert made == [(2, 3, 160)]


@pytest.mark.usefixtures("arithmetic")
def test_rows_of_zeros_and_large_values_are_quantized_alike():
    ours, theirs = layers(torch.float16, False, 6.0)
    x = torch.zeros(3, 160, dtype=torch.float16)
    x[1, 3], x[2] = 65504, 1e-7
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_a_layer_wider_than_a_piece_and_longer_than_float32_counts_in_the_worst_case():
    """4000 columns: 127^2 of them would exceed 2^24; sums of such inputs do not come near it."""
    ours, theirs = layers(torch.float32, True, 6.0, (130, 4000))
    for rows in (1, 40):
        x = inputs((rows, 4000), torch.float32, outliers=True)
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("case", ["training", "gradients", "autocast", "empty"])
def test_what_bitsandbytes_has_to_do_it_does(case, monkeypatch):
    ours, theirs = layers(torch.float32, True, 6.0)
    monkeypatch.setattr(linear8bit, "fused_product", lambda *_: pytest.fail("computed here"))
    x = inputs((2, 3, 160) if case != "empty" else (2, 0, 160), torch.float32, outliers=False)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_(case == "gradients")
        layer.train(case == "training")
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            output = layer(given)
        if case == "gradients":
            output.sum().backward()
            found.append(given.grad)
        found.append(output)
    half = len(found) // 2
    assert all(torch.equal(a, b) for a, b in zip(found[:half], found[half:], strict=True))
