"""Each operator's result, and what it refuses."""

from __future__ import annotations

import pytest

from aibit_format.errors import GraphError
from aibit_format.graph.operators import OPERATORS, broadcast, promoted
from aibit_format.graph.program import Spec


def _spec(text):
    dtype, *sizes = text.split()
    return Spec(dtype, tuple(int(size) if size.isdigit() else size for size in sizes))


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "result"),
    [
        ("neg", ["bf16 1 s 4"], {}, "bf16 1 s 4"),
        ("add", ["bf16 1 s 4", "f32 4"], {}, "f32 1 s 4"),
        ("add", ["i64 1 s"], {"other": 2}, "i64 1 s"),
        ("mul", ["i64 1 s", "f16 1"], {}, "f16 1 s"),
        ("div", ["f16 1 s"], {"other": 0.5}, "f16 1 s"),
        ("pow", ["f32 1 s"], {"exponent": -0.5}, "f32 1 s"),
        ("cast", ["i64 1 s"], {"dtype": "f32"}, "f32 1 s"),
        ("mean", ["f32 1 s 4"], {}, "f32 1 s 1"),
        ("matmul", ["f32 1 8 1", "f32 1 1 s"], {}, "f32 1 8 s"),
        ("reshape", ["f32 1 s 8"], {"shape": [1, "s", 2, 4]}, "f32 1 s 2 4"),
        ("expand", ["f32 1 s 1"], {"shape": [3, "s", 4]}, "f32 3 s 4"),
        ("transpose", ["f32 1 s 8"], {"first": 1, "second": 2}, "f32 1 8 s"),
        ("unsqueeze", ["f32 1 s"], {"dimension": 2}, "f32 1 s 1"),
        ("slice", ["f32 1 s 8"], {"dimension": 2, "start": 2, "stop": 5}, "f32 1 s 3"),
        ("cat", ["f32 1 s 8", "f32 1 s 2"], {"dimension": 2}, "f32 1 s 10"),
        ("linear", ["bf16 1 s 8", "bf16 5 8", "bf16 5"], {}, "bf16 1 s 5"),
        ("embedding", ["i64 1 s", "f16 160 8"], {}, "f16 1 s 8"),
        ("layer_norm", ["f32 1 s 8", "f32 8", "f32 8"], {"epsilon": 1e-5}, "f32 1 s 8"),
        ("rms_norm", ["f32 1 s 8", "f32 8"], {"epsilon": 0}, "f32 1 s 8"),
        ("rotary", ["f32 1 4 s 8", "f32 1 1 s 8", "f32 1 1 s 8"], {}, "f32 1 4 s 8"),
        ("attention", ["f32 1 4 s 8", "f32 1 2 s 8", "f32 1 2 s 6"], {"cap": 0}, "f32 1 s 4 6"),
        ("full_attention", ["f32 1 4 s 8", "f32 1 2 s 8", "f32 1 2 s 6"], {"cap": 0}, "f32 1 s 4 6"),
        ("gated", ["f32 1 s 8", "f32 1 s 8"], {}, "f32 1 s 8"),
        ("last", ["f32 1 s 8"], {}, "f32 1 k 8"),
    ],
)
def test_results(operator, operands, attributes, result):
    assert OPERATORS[operator].infer([_spec(each) for each in operands], attributes) == _spec(result)


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "says"),
    [
        ("neg", ["i64 1 s"], {}, "operand, expected floats, found i64 [1, 's']"),
        ("add", ["f32 3", "f32 4"], {}, "shapes of operands"),
        ("add", ["f32 s", "f32 k"], {}, "shapes of operands"),
        ("add", ["f32 3"], {}, "operands, expected two, or one and a number"),
        ("add", ["f32 3", "f32 3"], {"other": 1}, "operands, expected two, or one and a number"),
        ("add", ["i64 1 s"], {"other": 2.0}, "operands, expected floats"),
        ("add", ["i64 1 s", "i64 1"], {}, "operands, expected floats"),
        ("div", ["i64 1 s"], {"other": 2}, "operand, expected floats"),
        ("matmul", ["f32 4 3", "f32 2 4"], {}, "operands"),
        ("matmul", ["f32 4 3", "f16 3 4"], {}, "operands"),
        ("matmul", ["f32 3", "f32 3"], {}, "ranks"),
        ("reshape", ["f32 1 s 8"], {"shape": [1, "s", 9]}, "elements"),
        ("reshape", ["f32 1 k 8"], {"shape": [1, "s", 8]}, "elements"),
        ("expand", ["f32 1 s 2"], {"shape": [1, "s", 4]}, "shapes of operands"),
        ("expand", ["f32 4"], {"shape": [1]}, "shape"),
        ("transpose", ["f32 1 s"], {"first": 1, "second": 2}, "dimension, expected less than 2, found 2"),
        ("unsqueeze", ["f32 1 s"], {"dimension": 3}, "dimension"),
        ("slice", ["f32 1 s"], {"dimension": 1, "start": 0, "stop": 1}, "part"),
        ("slice", ["f32 1 8"], {"dimension": 1, "start": 3, "stop": 3}, "part"),
        ("slice", ["f32 1 8"], {"dimension": 1, "start": 3, "stop": 9}, "part"),
        ("cat", ["f32 1 s", "f32 1 s"], {"dimension": 1}, "operand"),
        ("cat", ["f32 1 8", "f16 1 8"], {"dimension": 1}, "operand"),
        ("cat", ["f32 1 8", "f32 2 8"], {"dimension": 1}, "operand"),
        ("linear", ["f32 1 s 8", "f32 5 9"], {}, "operands"),
        ("linear", ["f32 1 s 8", "f32 2 5 8"], {}, "operands"),
        ("linear", ["f32 1 s 8", "f32 5 8", "f32 8"], {}, "bias"),
        ("embedding", ["f32 1 s", "f32 5 8"], {}, "operands"),
        ("layer_norm", ["f32 1 s 8", "bf16 8"], {"epsilon": 0}, "weight, expected f32 [8], found bf16 [8]"),
        ("layer_norm", ["f32 1 s 8"], {"epsilon": -1}, "epsilon"),
        ("rms_norm", ["f32 1 s 8", "f32 7"], {"epsilon": 0}, "weight"),
        ("rotary", ["f32 1 4 s 7", "f32 1 1 s 7", "f32 1 1 s 7"], {}, "operands"),
        ("rotary", ["f32 1 4 s 8", "f16 1 1 s 8", "f16 1 1 s 8"], {}, "operands"),
        ("rotary", ["f32 1 4 s 8", "f32 1 4 s 8", "f32 1 4 s 8"], {}, "operands"),
        ("attention", ["f32 1 4 s 8", "f32 1 3 s 8", "f32 1 3 s 8"], {"cap": 0}, "heads, expected a multiple of 3"),
        ("full_attention", ["f32 1 4 s 8", "f32 1 3 s 8", "f32 1 3 s 8"], {"cap": 0}, "heads, expected a multiple"),
        ("attention", ["f32 1 4 s 8", "f32 1 2 s 6", "f32 1 2 s 6"], {"cap": 0}, "operands"),
        ("attention", ["f32 1 4 5 8", "f32 1 2 5 8", "f32 1 2 5 8"], {"cap": 0}, "operands"),
        ("attention", ["f32 1 4 s 8", "f16 1 2 s 8", "f16 1 2 s 8"], {"cap": 0}, "operands"),
        ("attention", ["f32 1 4 s 8", "f32 1 2 s 8", "f32 1 2 s 8"], {"cap": -1}, "cap"),
        ("gated", ["f32 1 s 8", "f32 1 s 7"], {}, "operands"),
        ("last", ["f32 s 8"], {}, "operand"),
        ("last", ["f32 1 5 8"], {}, "operand"),
    ],
)
def test_other_operands_are_refused(operator, operands, attributes, says):
    with pytest.raises(GraphError) as caught:
        OPERATORS[operator].infer([_spec(each) for each in operands], attributes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("operator", "attribute", "values"),
    [
        ("add", "other", [True, "1", None, 1e38, 1 << 31, 10**400, float("nan"), float("inf")]),
        ("pow", "exponent", [65, -65.0, True]),
        ("cast", "dtype", ["f64", "int", 1, []]),
        ("reshape", "shape", [3, "s", [0], [-1], ["k"], [True], [1.0], [[]]]),
        ("transpose", "first", [-1, True, 1.0, 1 << 31]),
        ("gelu", "tanh", [1, "tanh"]),
        ("rms_norm", "rounds", [0, None]),
        ("attention", "window", [-1, 0.0, False]),
        ("attention", "layer", [-1, "0"]),
        ("gated", "activation", ["gelu", 0, [], "eval"]),
    ],
)
def test_other_attributes_are_refused(operator, attribute, values):
    rows = OPERATORS[operator].attributes | OPERATORS[operator].optional
    assert not [value for value in values if rows[attribute](value)]


def test_dtypes_and_shapes_of_two_are_torchs():
    torch = pytest.importorskip("torch")
    from aibit_format.interop import torch_dtypes

    names = torch_dtypes()
    for a in ("i64", "f32", "bf16", "f16"):
        for b in ("i64", "f32", "bf16", "f16"):
            assert names[promoted(a, b)] == torch.promote_types(names[a], names[b])
    for first, second in (((3, 1), (4,)), ((1,), (2, 3)), ((2, 1, 4), (5, 1))):
        assert broadcast(first, second) == tuple(torch.broadcast_shapes(first, second))
