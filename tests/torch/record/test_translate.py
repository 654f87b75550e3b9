"""Programs of exports: the operators that come of torch's, and what has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aibit_format.errors import GraphError
from aibit_format.graph.program import Constant, Spec
from aibit_format.torch.record.translate import translate


def _translated(function, **buffers):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in buffers.items():
                self.register_buffer(name, value, persistent=False)

        def forward(self, ids, positions):
            return function(self, ids, positions)

    tokens = torch.export.Dim("tokens", min=2, max=64)
    exported = torch.export.export(
        Model(), (torch.zeros(1, 5, dtype=torch.long), torch.arange(5)[None]),
        dynamic_shapes={"ids": {1: tokens}, "positions": {1: tokens}}, strict=False,
    )  # fmt: skip
    return translate(exported, 64, {"torch": "2"})


@pytest.mark.parametrize(
    ("function", "operator", "attributes", "spec"),
    [
        (lambda _, i, p: p.float() * 2, "mul", {"other": 2}, "f32 [1, 's']"),
        (lambda _, i, p: p.float()[..., None].expand(1, -1, 3), "expand", {"shape": [1, "s", 3]}, "f32 [1, 's', 3]"),
        (lambda _, i, p: p.float()[..., None].transpose(1, -1), "transpose", {"first": 1, "second": 2},
         "f32 [1, 1, 's']"),
        (lambda _, i, p: p.float().square(), "pow", {"exponent": 2}, "f32 [1, 's']"),
        (lambda _, i, p: p.to(torch.bfloat16), "cast", {"dtype": "bf16"}, "bf16 [1, 's']"),
        (lambda _, i, p: p.float()[..., None][:, -1:], "last", {}, "f32 [1, 'k', 1]"),
        (lambda m, i, p: (p.float()[..., None] * m.w)[..., 1:3], "slice", {"dimension": 2, "start": 1, "stop": 3},
         "f32 [1, 's', 2]"),
        (lambda m, i, p: (p.float()[..., None] * m.w).chunk(2, -1)[1], "slice",
         {"dimension": 2, "start": 2, "stop": 4}, "f32 [1, 's', 2]"),
        (lambda m, i, p: (p.float()[..., None] * m.w).mean(-1, keepdim=True), "mean", {}, "f32 [1, 's', 1]"),
    ],
)  # fmt: skip
def test_operators(function, operator, attributes, spec):
    program = _translated(function, w=torch.arange(4.0))
    last = program.nodes[-1]
    assert (last.operator, last.attributes, repr(last.spec)) == (operator, attributes, spec)


def test_buffers_are_constants_and_numbers_attributes():
    program = _translated(
        lambda m, i, p: p.float()[..., None] * m.w * m.scale, w=torch.tensor([0.5, 2.0]), scale=torch.tensor(3.0)
    )
    assert program.constants == (((2,), (0.5, 2.0)),)
    assert program.nodes[-2].operands[1] == Constant(0) and program.nodes[-1].attributes == {"other": 3.0}
    assert program.nodes[-1].spec == Spec("f32", (1, "s", 2))


def test_a_step_that_is_there_already_is_not_taken_again():
    program = _translated(lambda _, i, p: p.float().cos() + p.float().cos())
    assert [node.operator for node in program.nodes] == ["cast", "cos", "add"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda _, i, p: p.float().cumsum(-1), "aten.cumsum.default has no operator in a graph"),
        (lambda _, i, p: p.float()[..., None].mean(1, keepdim=True), "a mean over"),
        (lambda _, i, p: torch.cat((p, p), 1).float() * 2, "a size is 2"),
        (lambda m, i, p: p.float()[..., None] * m.short, "short is torch.float16"),
    ],
)
def test_what_a_graph_has_no_words_for_is_refused(function, says):
    with pytest.raises(GraphError, match=says):
        _translated(function, short=torch.ones(2, dtype=torch.float16))


def test_logits_are_the_last_step():
    with pytest.raises(GraphError, match="the last step of the model does not give its logits"):
        _translated(lambda _, i, p: i)
