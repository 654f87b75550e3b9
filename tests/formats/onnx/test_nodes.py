"""Each operator of stored graphs has a counterpart in ONNX, which gives what torch gives."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aibit_format.errors import WriteError
from aibit_format.formats.onnx.nodes import _OPERATORS, Translation
from aibit_format.formats.onnx.weights import Weights
from aibit_format.graph.operators import OPERATORS
from aibit_format.graph.program import Constant, Node, Program, Spec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
X = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
_TYPES = {"float32": 1, "int64": 7, "bool": 9}


def test_all_have_one():
    assert set(_OPERATORS) == set(OPERATORS)


def test_what_is_unknown_is_named():
    program = Program((Node("strange", (0,), {}, Spec("f32", (1, "s"))),), (), 8)
    with pytest.raises(WriteError, match="operator 'strange' of its graph is unknown in ONNX"):
        Translation(program, Weights(SimpleNamespace(path="m.aibit")), 0).run()


def computed(operator, shape, attributes, dtype="f32"):
    """What ONNX makes of the constant X by one operator."""
    node = Node(operator, (Constant(0),), attributes, Spec(dtype, shape))
    program = Program((node,), ((X.shape, tuple(X.reshape(-1).tolist())),), 8)
    made = Translation(program, Weights(SimpleNamespace(path="m.aibit")), 0)
    made.run()
    make = onnx.helper
    nodes = [make.make_node(step.operator, step.inputs, [step.output], **step.attributes) for step in made.steps]
    tensors = [
        make.make_tensor(each.name, _TYPES[each.dtype], each.shape, np.ascontiguousarray(each.make()).tobytes(), True)
        for each in made.weights.made.values()
    ]
    output = onnx.helper.make_tensor_value_info(made.output, 7 if dtype == "i64" else 1, None)
    ids = onnx.helper.make_tensor_value_info("input_ids", 7, [1, "s"])
    graph = onnx.helper.make_graph(nodes, "one", [ids], [output], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": np.zeros((1, 6), np.int64)})[0]


@pytest.mark.parametrize(
    ("operator", "attributes", "wanted"),
    [
        ("neg", {}, lambda x: -x), ("exp", {}, torch.exp), ("cos", {}, torch.cos), ("sin", {}, torch.sin),
        ("tanh", {}, torch.tanh), ("sigmoid", {}, torch.sigmoid), ("relu", {}, torch.relu),
        ("silu", {}, torch.nn.functional.silu), ("pow", {"exponent": 3}, lambda x: x**3),
        ("gelu", {"tanh": False}, torch.nn.functional.gelu),
        ("gelu", {"tanh": True}, lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("add", {"other": 2.5}, lambda x: x + 2.5), ("sub", {"other": 2}, lambda x: x - 2),
        ("mul", {"other": -1.5}, lambda x: x * -1.5), ("div", {"other": 4}, lambda x: x / 4),
    ],
)
def test_elements(operator, attributes, wanted):
    assert np.allclose(computed(operator, (1, 6, 4), attributes), wanted(torch.from_numpy(X)).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "wanted"),
    [
        ("mean", (1, 6, 1), {}, X.mean(-1, keepdims=True)),
        ("reshape", (1, "s", 2, 2), {"shape": [1, "s", 2, 2]}, X.reshape(1, 6, 2, 2)),
        ("transpose", (1, 4, 6), {"first": 1, "second": 2}, X.transpose(0, 2, 1)),
        ("unsqueeze", (1, 1, 6, 4), {"dimension": 1}, X[:, None]),
        ("slice", (1, 6, 2), {"dimension": 2, "start": 1, "stop": 3}, X[..., 1:3]),
        ("expand", (3, 6, 4), {"shape": [3, 6, 4]}, np.broadcast_to(X, (3, 6, 4))),
        ("expand", (3, "s", 4), {"shape": [3, "s", 4]}, np.broadcast_to(X, (3, 6, 4))),
    ],
)
def test_shapes(operator, shape, attributes, wanted):
    found = computed(operator, shape, attributes)
    assert found.shape == wanted.shape and np.allclose(found, wanted, atol=1e-6)


def test_a_cast_to_integers_goes_toward_zero():
    assert np.array_equal(computed("cast", (1, 6, 4), {"dtype": "i64"}, "i64"), X.astype(np.int64))
