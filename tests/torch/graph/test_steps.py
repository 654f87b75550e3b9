"""What each operator of a program computes, against torch's functions and formulas written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from aibit_format.graph.operators import OPERATORS
from aibit_format.graph.program import Constant, Node, Program, Spec
from aibit_format.torch.graph.cache import Cache
from aibit_format.torch.graph.steps import _STEPS, Binding, Call
from aibit_format.torch.kernels import operators


def _run(operator, values, sizes, call=None, /, **attributes):
    node = Node(operator, tuple(range(len(values))), attributes, Spec("f32", sizes))
    binding = Binding(None, Program((node,), (), 64), call or Call(3), [Cache(64)])
    step, operands = binding.step(node)
    return step(*(values[i] for i in operands))


X = torch.linspace(-3, 3, 24).view(1, 3, 8)


def test_every_operator_has_a_step():
    assert _STEPS.keys() == OPERATORS.keys()


@pytest.mark.parametrize(
    ("operator", "values", "shape", "attributes", "wanted"),
    [
        ("add", [X, X], (1, "s", 8), {}, X + X),
        ("sub", [X], (1, "s", 8), {"other": 2}, X - 2),
        ("mul", [X, X[0, 0]], (1, "s", 8), {}, X * X[0, 0]),
        ("div", [X], (1, "s", 8), {"other": 4.0}, X / 4),
        ("neg", [X], (1, "s", 8), {}, -X),
        ("exp", [X], (1, "s", 8), {}, X.exp()),
        ("silu", [X], (1, "s", 8), {}, X * X.sigmoid()),
        ("gelu", [X], (1, "s", 8), {"tanh": False}, X * (1 + torch.erf(X / 2**0.5)) / 2),
        ("gelu", [X], (1, "s", 8), {"tanh": True}, F.gelu(X, approximate="tanh")),
        ("pow", [X], (1, "s", 8), {"exponent": 2}, X * X),
        ("cast", [X], (1, "s", 8), {"dtype": "bf16"}, X.bfloat16()),
        ("mean", [X], (1, "s", 1), {}, X.sum(-1, keepdim=True) / 8),
        ("matmul", [X, X.mT], (1, "s", 8), {}, X @ X.mT),
        ("reshape", [X], (1, "s", 2, 4), {"shape": [1, "s", 2, 4]}, X.view(1, 3, 2, 4)),
        ("reshape", [X], (24,), {"shape": [24]}, X.view(24)),
        ("expand", [X[..., :1]], (2, "s", 5), {"shape": [2, "s", 5]}, X[..., :1].repeat(2, 1, 5)),
        ("transpose", [X], (1, 8, "s"), {"first": 1, "second": 2}, X.mT),
        ("unsqueeze", [X], (1, 1, "s", 8), {"dimension": 1}, X[:, None]),
        ("slice", [X], (1, "s", 3), {"dimension": 2, "start": 2, "stop": 5}, X[..., 2:5]),
        ("cat", [X, X[..., :2]], (1, "s", 10), {"dimension": 2}, torch.cat((X, X[..., :2]), -1)),
        ("layer_norm", [X, X[0, 0], X[0, 1]], (1, "s", 8), {"epsilon": 0.1},
         (X - X.mean(-1, keepdim=True)) / (X.var(-1, keepdim=True, correction=0) + 0.1).sqrt() * X[0, 0] + X[0, 1]),
        ("last", [X], (1, "k", 8), {}, X[:, -1:]),
    ],
)  # fmt: skip
def test_results(operator, values, shape, attributes, wanted):
    found = _run(operator, values, shape, **attributes)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_all_results_are_kept_where_they_are_wanted():
    assert _run("last", [X], (1, "k", 8), Call(3, 0, True)).shape == (1, 3, 8)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_of_our_own(dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(operators, "COMPILED", False)
    x, weight = X.to(dtype), X[0, 0].to(dtype)
    wide = x.float() / (x.float().square().mean(-1, keepdim=True) + 0.1).sqrt()
    found = _run("rms_norm", [x, weight], (1, "s", 8), epsilon=0.1, offset=1.0, rounds=False)
    torch.testing.assert_close(found, (wide * (1 + weight.float())).to(dtype))
    found = _run("rms_norm", [x, weight], (1, "s", 8), epsilon=0.1, offset=0.0, rounds=True)
    torch.testing.assert_close(found, weight * wide.to(dtype))
    for activation, function in (("silu", F.silu), ("relu", F.relu)):
        found = _run("gated", [x, x.flip(-1)], (1, "s", 8), activation=activation)
        torch.testing.assert_close(found, function(x) * x.flip(-1))
    heads, angles = x[:, None], torch.linspace(0, 1, 12).view(1, 1, 3, 4).repeat(1, 1, 1, 2)
    found = _run("rotary", [heads, angles.cos().to(dtype), angles.sin().to(dtype)], (1, 1, "s", 8))
    pairs = torch.complex(heads[..., :4].float(), heads[..., 4:].float()) * torch.exp(1j * angles[..., :4])
    bound = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), torch.cat((pairs.real, pairs.imag), -1), atol=bound, rtol=bound)


def test_attention_keeps_keys_and_values():
    attributes = {"layer": 0, "scale": 0.5, "window": 0, "cap": 0.0}
    node = Node("attention", (0, 1, 2), attributes, Spec("f32", (1, "s", 2, 8)))
    binding = Binding(None, Program((node,), (), 64), Call(5), [Cache(64)])
    step, _ = binding.step(node)
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    whole = step(query, key, value)
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5).transpose(1, 2)
    torch.testing.assert_close(whole, wanted)
    for first in range(5):
        binding.call.tokens, binding.call.first = 1, first
        found = step(*(each[:, :, first : first + 1] for each in (query, key, value)))
        torch.testing.assert_close(found, whole[:, first : first + 1])


def test_constants_are_put_in_their_places():
    node = Node("mul", (Constant(0), 0), {}, Spec("f32", (1, "s", 8)))
    step, operands = Binding(None, Program((node,), (((1, 8), tuple(range(8))),), 64)).step(node)
    assert operands == (0,) and torch.equal(step(X), X * torch.arange(8.0))
