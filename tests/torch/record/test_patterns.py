"""Which operators of an export become one of a graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aibit_format.torch.record.custom_ops import gated_op, rotary_op
from aibit_format.torch.record.patterns import join


def _targets(function, *shapes):
    class Model(nn.Module):
        def forward(self, *values):
            return function(*values)

    graph = torch.export.export(Model(), tuple(torch.ones(shape) for shape in shapes), strict=False).graph
    join(graph)
    return [node.target for node in graph.nodes if node.op == "call_function"]


def _turned(x, cosines, sines, cut=4):
    return x * cosines + torch.cat((-x[..., cut:], x[..., :cut]), -1) * sines


def _interleaved(x, cosines, sines):
    return x * cosines + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sines


X, ANGLES = (1, 2, 5, 8), (1, 1, 5, 8)


def test_rotary_embeddings():
    assert _targets(_turned, X, ANGLES, ANGLES) == [rotary_op]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (_interleaved, (X, ANGLES, ANGLES)),
        (lambda *each: _turned(*each, cut=2), (X, ANGLES, ANGLES)),
        (_turned, (X, (1, 2, 5, 8), (1, 2, 5, 8))),
        (_turned, ((2, 5, 8), (1, 5, 8), (1, 5, 8))),
        (lambda x, c, s: x * c + torch.cat((x[..., 4:], -x[..., :4]), -1) * s, (X, ANGLES, ANGLES)),
        (lambda x, c, s: x * c + torch.cat((-c[..., 4:], c[..., :4]), -1).expand(X) * s, (X, ANGLES, ANGLES)),
    ],
)
def test_others_stay_as_they_are(function, shapes):
    assert rotary_op not in _targets(function, *shapes)


@pytest.mark.parametrize(
    "activation",
    [nn.functional.silu, nn.functional.relu, lambda x: nn.functional.gelu(x, approximate="tanh")],
)
def test_gates(activation):
    assert _targets(lambda gate, up: activation(gate) * up, (3, 4), (3, 4)) == [gated_op]
    assert _targets(lambda gate, up: up * activation(gate), (3, 4), (3, 4)) == [gated_op]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda gate, up: nn.functional.gelu(gate) * up, ((3, 4), (3, 4))),
        (lambda gate, up: nn.functional.silu(gate) * up, ((3, 4), (4,))),
        (lambda gate, up: (nn.functional.silu(gate) * up) + nn.functional.silu(gate).exp() * 0, ((3, 4), (1, 4))),
    ],
)
def test_products_that_are_no_gates(function, shapes):
    assert gated_op not in _targets(function, *shapes)
