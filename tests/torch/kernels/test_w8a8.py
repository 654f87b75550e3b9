"""Products of 8-bit inputs and weights, against whole numbers of 64 bits and torch's own quantizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.torch.kernels import matmul, w8a8
from aibit_format.torch.kernels.w8a8 import Inputs
from tests.support.w8a8 import TEXTS, reference, weight_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    if request.param == "compiled" and not matmul.COMPILED:
        pytest.skip("no compiled code here")
    monkeypatch.setattr(w8a8, "COMPILED", request.param == "compiled")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rows", [0, 1, 3, 5, 40])
def test_it_is_the_arithmetic_of_the_spec(text, dtype, rows):
    weight = weight_of(text, (48, 100))
    x = (torch.randn(rows, 100, generator=torch.Generator().manual_seed(1)) * 1.3).to(dtype)
    x[1:2] = 0
    for bias in (None, torch.linspace(-1, 1, 48).to(dtype)):
        found = w8a8.linear(x, weight, bias)
        assert found.dtype == dtype and torch.equal(found, reference(x, weight.planes, bias))


@pytest.mark.usefixtures("way")
def test_it_is_the_arithmetic_of_the_spec_for_any_shape(monkeypatch):
    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(TEXTS), st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40), st.integers(1, 70),
           st.integers(-130, 100))  # fmt: skip
    def check(text, seed, rows, outputs, columns, exponent):
        high = float(np.ldexp(1.0, min(exponent, 60)))
        weight = weight_of(text, (outputs, columns), seed, -high / 3, high)
        x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
        x = torch.ldexp(x.double(), torch.tensor(exponent)).float()
        assert torch.equal(w8a8.linear(x, weight, None), reference(x, weight.planes, None))

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_inputs_are_those_of_torchs_fake_quantize(dtype):
    x = (torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    for text in TEXTS[1:]:
        planes = weight_of(text, (2, 300)).planes
        found = Inputs.of(x, planes)
        zero = 0 if found.zero_point is None else int(found.zero_point)
        wanted = torch.fake_quantize_per_tensor_affine(x.float(), float(found.scales), zero, -128, 127)
        assert torch.equal((found.codes.float() - zero) * found.scales, wanted)
    rows = Inputs.of(x, weight_of("int8-dynamic", (2, 300)).planes)
    zeros = torch.zeros(200, dtype=torch.int32)
    wanted = torch.fake_quantize_per_channel_affine(x.float(), rows.scales, zeros, 0, -127, 127)
    assert torch.equal(rows.codes.float() * rows.scales[:, None], wanted)


def test_ties_are_rounded_to_even():
    planes = weight_of("int8-static", (2, 6), high=127.0, low=0.0).planes
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -200.0]])
    assert Inputs.of(x, planes).codes.tolist() == [[0, 2, 2, 0, -2, -128]]


@pytest.mark.usefixtures("way")
def test_sums_of_many_columns_are_exact(monkeypatch):
    columns = 70000  # more than fit 32 bits, with a zero point
    weight = weight_of("int8-static,asymmetric=1", (3, columns), low=0.0, high=1.0)
    weight.planes["codes"].fill_(127)
    x = torch.ones(2, columns)
    assert torch.equal(w8a8.linear(x, weight, None), reference(x, weight.planes, None))
    assert int(reference(x, weight.planes, None)[0, 0] / (weight.planes["scale"][0] / 255)) > 2**31


def test_sums_of_rows_may_be_given(monkeypatch):
    monkeypatch.setattr(w8a8, "COMPILED", False)
    weight, x = weight_of("int8-static,asymmetric=1", (8, 32)), torch.randn(2, 32)
    sums = w8a8.code_sums(weight.planes["codes"])
    assert torch.equal(w8a8.linear(x, weight, None, sums), w8a8.linear(x, weight, None))
    assert not torch.equal(w8a8.linear(x, weight, None, sums + 1), w8a8.linear(x, weight, None))


def test_a_row_that_is_not_finite_does_not_touch_others():
    weight = weight_of("int8-dynamic", (8, 32))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = w8a8.linear(x, weight, None)
    for value in (torch.nan, torch.inf):
        x[1, 5] = value
        found = w8a8.linear(x, weight, None)
        assert not found[1].isfinite().any()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("text", TEXTS)
def test_gradients_pass_straight_through(text):
    weight = weight_of(text, (8, 32))
    x, bias = torch.randn(4, 32, requires_grad=True), torch.zeros(8, requires_grad=True)
    out = w8a8.linear(x, weight, bias)
    assert torch.equal(out.detach(), reference(x.detach(), weight.planes, bias.detach()))
    grad = torch.randn(4, 8)
    out.backward(grad)
    decoded = torch.from_numpy(weight.scheme.decode({k: p.numpy() for k, p in weight.planes.items()}, (8, 32), "f32"))
    assert torch.allclose(x.grad, grad @ decoded, atol=1e-5) and torch.allclose(bias.grad, grad.sum(0))
