"""Weights whose columns are in another order: inputs are moved, and planes are multiplied as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.interop import to_torch
from aibit_format.schemes import capabilities, make, parse
from aibit_format.torch.kernels import functional, packed
from aibit_format.torch.kernels.decode import decode_rows
from aibit_format.torch.kernels.functional import Weight
from aibit_format.torch.layers import custom_ops
from aibit_format.torch.layers.dequantized import QuantizedEmbedding, QuantizedLinear
from aibit_format.torch.layers.experts import QuantizedExperts
from tests.support.gguf_models import NAMES, random_blocks


def made(name, shape, seed=0):
    """Return planes as tensors, and the values by the numpy code."""
    scheme, random = make(name, 2), np.random.default_rng(seed)
    order = random.permutation(shape[-1]).astype(np.int32)
    planes = {"blocks": random_blocks(name, shape, seed), "column_order": order}
    values = torch.from_numpy(scheme.decode(planes, shape, "f32"))
    specs = scheme.planes(shape, "f32")
    return scheme, {spec.role: to_torch(planes[spec.role], spec.dtype) for spec in specs}, values


def close(found, x, values, bias=None):
    wanted = x.double() @ values.double().T + (0 if bias is None else bias)
    rtol = 1e-4 if x.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(NAMES), st.sampled_from([256, 512]), st.integers(1, 9), st.sampled_from([1, 2, 16, 17, 40]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products_are_those_of_the_values(name, columns, features, rows, dtype, with_bias, seed):
    scheme, planes, values = made(name, (features, columns), seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator).to(dtype)
    bias = torch.randn(features, generator=generator) if with_bias else None
    weight = Weight(scheme, planes, (features, columns), "f32")
    layer = QuantizedLinear(scheme, planes, (features, columns), "f32", bias)
    for found in (functional.linear(x, weight, bias), layer(x[None])[0]):
        assert found.dtype == dtype
        close(found, x, values, bias)
    assert torch.equal(layer.weight, values) and torch.equal(weight.rows(slice(0, features), torch.float32), values)


def test_a_product_is_bit_for_bit_that_of_the_blocks_with_the_input_moved():
    scheme, planes, _ = made("gguf:q4_k", (48, 512))
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    moved = torch.empty_like(x)
    moved[:, planes["column_order"].long()] = x
    assert torch.equal(functional.in_stored_order(x, planes["column_order"]), moved)
    plain = Weight(scheme.unordered, {"blocks": planes["blocks"]}, (48, 512), "f32")
    ordered = Weight(scheme, planes, (48, 512), "f32")
    for rows in (1, 16, 40):
        assert torch.equal(functional.linear(x[:rows], ordered, None), functional.linear(moved[:rows], plain, None))


def test_few_rows_are_multiplied_with_the_blocks():
    scheme, planes, _ = made("gguf:q6_k", (16, 256))
    layer = QuantizedLinear(scheme, planes, (16, 256), "f32")
    assert layer._product == functional.row_product(parse("gguf:q6_k"))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    assert functional.uses_codes(layer._product, x, None) == packed.COMPILED
    found = layer(x)
    layer.activations = "int8"  # which only the compiled product rounds to
    assert torch.equal(layer(x), found) != packed.COMPILED


def test_gradients_pass_in_the_order_of_the_input():
    scheme, planes, values = made("gguf:q4_0", (24, 256))
    layer = QuantizedLinear(scheme, planes, (24, 256), "f32")
    x = torch.ones(3, 256, requires_grad=True)
    weights = torch.arange(24.0)
    (layer(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, (weights @ values).expand(3, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gguf:q4_k", "gguf:iq3_s"])
def test_decoding_in_torch_is_that_of_numpy(name):
    scheme, planes, values = made(name, (9, 512))
    decode = capabilities.find(scheme, "decode_torch")
    for rows in (slice(2, 7), torch.tensor([0, 8])):
        assert torch.equal(decode(scheme, planes, (9, 512), rows), values[rows])
        assert torch.equal(decode_rows(scheme, planes, (9, 512), "f32", rows), values[rows])


def test_tables_and_experts():
    scheme, planes, values = made("gguf:q4_k", (9, 256))
    table = QuantizedEmbedding(scheme, planes, (9, 256), "f32")
    ids = torch.tensor([[8, 0, 3]])
    assert torch.equal(table(ids), values[ids])
    scheme, planes, values = made("gguf:q4_k", (3, 8, 256))
    experts = QuantizedExperts(scheme, planes, (3, 8, 256), "f32", transposed=False)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    for expert in range(3):
        close(torch.nn.functional.linear(x, experts[expert]), x, values[expert])
        assert torch.equal(experts[expert].decoded(), values[expert])


@pytest.mark.parametrize("learns", [False, True])
def test_a_compiler_sees_one_graph(learns):
    scheme, planes, values = made("gguf:q4_k", (24, 256))
    layer = QuantizedLinear(scheme, planes, (24, 256), "f32", torch.ones(24))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(0), requires_grad=learns)
    with torch.set_grad_enabled(learns):
        found = compiled(x)
    close(found.detach(), x.detach(), values, torch.ones(24))
    if learns:
        found.sum().backward()
        torch.testing.assert_close(x.grad, values.sum(0).expand(2, -1), rtol=1e-4, atol=1e-4)
    arguments = [[planes["blocks"], planes["column_order"]], "blocks column_order", scheme.text, [24, 256], "f32"]
    torch.library.opcheck(custom_ops.linear, (x.detach(), *arguments, None))
