"""Turns what ``torch.export`` gives into a program: one row for each operator, and patterns for those of our own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from ...errors import GraphError
from ...graph import program
from ...graph.program import Constant, Operand, Program, Spec, Tensor
from ...interop import dtype_name
from .patterns import join

aten: Any = torch.ops.aten
_END = 1 << 62  # of slices that reach to it
Made = tuple[str, list[Any], dict[str, Any]]  # operator, operands (nodes), attributes


def translate(exported: Any, positions: int, versions: Mapping[str, str]) -> Program:
    """Return the program of an export with inputs ``ids`` and ``positions`` and one output."""
    graph: Graph = exported.graph
    join(graph)
    return _Translation(exported).program(graph, positions, versions)


class _Translation:
    def __init__(self, exported: Any) -> None:
        self.values: dict[Node, Operand] = {}
        self.nodes: list[program.Node] = []
        self.constants: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
        self.exported = exported
        self.inputs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self.known: dict[str, int] = {}
        self.tokens: Any = None

    def program(self, graph: Graph, positions: int, versions: Mapping[str, str]) -> Program:
        given = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                given += self._input(node, given)
            elif node.op == "output":
                (result,) = node.args[0]
                if self.values.get(result) != len(self.nodes) + program.INPUTS - 1:
                    raise GraphError("the last step of the model does not give its logits")
            elif node.op == "call_function":
                self._step(node)
            else:
                raise GraphError(f"cannot record {node.op} {node.target}")
        return Program(tuple(self.nodes), tuple(self.constants), positions, versions)

    def _input(self, node: Any, given: int) -> int:
        """Take ids and positions, parameters by name, and buffers that are in no file as constants."""
        spec = self.inputs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            self.values[node] = given
            if not given:
                self.tokens = node.meta["val"].shape[1]
            return 1
        name = spec.target.removeprefix("model.")
        if spec.kind == InputKind.PARAMETER:
            self.values[node] = Tensor(name)
        elif node.users:
            value = self._value(spec)
            if value.numel() == 1 and not value.dim() and value.is_floating_point():
                node.meta["number"] = float(value)  # as torch multiplies with it
            else:
                self.values[node] = self._constant(name, value)
        return 0

    def _value(self, spec: Any) -> torch.Tensor:
        found = self.exported.state_dict.get(spec.target)
        return self.exported.constants[spec.target] if found is None else found

    def _constant(self, name: str, value: torch.Tensor) -> Constant:
        if value.dtype != torch.float32 or value.numel() > program.MAX_CONSTANTS:
            raise GraphError(f"{name} is {value.dtype} {list(value.shape)}: constants are small, and float32")
        self.constants.append((tuple(value.shape), tuple(value.reshape(-1).tolist())))
        return Constant(len(self.constants) - 1)

    def _step(self, node: Any) -> None:
        make = _ROWS.get(node.target)
        value = node.meta["val"]
        if make is _cast and "number" in node.args[0].meta:
            node.meta["number"] = float(torch.tensor(node.args[0].meta["number"]).to(value.dtype))
            return
        if isinstance(value, torch.Tensor) and 0 in value.shape:
            return  # a part of nothing, which only ``cat`` takes
        if make is None:
            if node.target in _SKIPPED or not node.users:
                return
            raise GraphError(f"{node.target} has no operator in a graph")
        made = make(node)
        if isinstance(made, Node):  # the value is one that is there already
            self.values[node] = self.values[made]
            return
        name, operands, attributes = made
        sizes = {key: [self._size(each) for each in value] for key, value in attributes.items() if key == "shape"}
        taken = tuple(self._operand(each) for each in operands)
        made = program.Node(name, taken, attributes | sizes, self._spec(node, name))
        key = repr(made)  # a step that is there already, as each layer looks up the same angles, is not taken again
        if key not in self.known or name == "attention":
            self.nodes.append(made)
            self.known[key] = len(self.nodes) + program.INPUTS - 1
        self.values[node] = self.known[key]

    def _operand(self, value: Any) -> Operand:
        if isinstance(value, str):
            return Tensor(value)
        if value not in self.values:
            raise GraphError(f"{value} is not a value of the graph")
        return self.values[value]

    def _spec(self, node: Any, name: str) -> Spec:
        value = node.meta["val"]
        shape = [self._size(each) for each in value.shape]
        if name == "last" or self._follows_last(node):
            shape[1] = program.WANTED
        return Spec(dtype_name(value.dtype), tuple(shape))

    def _follows_last(self, node: Any) -> bool:
        """Return whether a value is of the wanted tokens: one operand is, as nothing but logits follows."""
        operands = [self.values.get(each) for each in node.all_input_nodes]
        numbers = [each - program.INPUTS for each in operands if isinstance(each, int) and each >= program.INPUTS]
        return any(program.WANTED in self.nodes[i].spec.shape for i in numbers)

    def _size(self, size: Any) -> int | str:
        if isinstance(size, Node):
            size = size.meta["val"]
        if isinstance(size, torch.SymInt):
            if size.node.expr == self.tokens.node.expr:
                return program.TOKENS
            raise GraphError(f"a size is {size}, neither a number nor that of tokens")
        return int(size)


def _argument(node: Any, place: int, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else default


def _rank(node: Any) -> int:
    return len(node.meta["val"].shape)


def _plain(name: str) -> Callable[[Any], Made]:
    return lambda node: (name, [node.args[0]], {})


def _binary(name: str) -> Callable[[Any], Made]:
    def made(node: Any) -> Made:
        a, b = node.args[:2]
        if node.kwargs:
            raise GraphError(f"{node.target} has {node.kwargs}")
        if isinstance(b, Node) and "number" in a.meta:
            a, b = b, a
        b = b.meta.get("number", b) if isinstance(b, Node) else b
        return (name, [a, b], {}) if isinstance(b, Node) else (name, [a], {"other": b})

    return made


def _cast(node: Any) -> Made | Node:
    x: Any = node.args[0]
    before, after = x.meta["val"].dtype, node.meta["val"].dtype
    return x if before == after else ("cast", [x], {"dtype": dtype_name(after)})


def _shaped(name: str) -> Callable[[Any], Made | Node]:
    def made(node: Any) -> Made | Node:
        x: Any = node.args[0]
        if x.meta["val"].shape == node.meta["val"].shape:
            return x
        return name, [x], {"shape": list(node.meta["val"].shape)}

    return made


def _transpose(node: Any) -> Made:
    rank = _rank(node)
    first, second = sorted(each % rank for each in node.args[1:3])
    return "transpose", [node.args[0]], {"first": first, "second": second}


def _slice(node: Any) -> Made | Node:
    x: Any = node.args[0]
    place, start, stop, step = (_argument(node, i, default) for i, default in ((1, 0), (2, None), (3, None), (4, 1)))
    before, after = x.meta["val"].shape, node.meta["val"].shape
    if before == after:
        return x
    if place == 1 and start == -1 and len(before) == 3 and after[1] == 1:
        return "last", [x], {}
    size = before[place]
    if not isinstance(size, int) or step != 1:
        raise GraphError(f"a part {start}:{stop}:{step} of {size}")
    start = min(start or 0, size) if (start or 0) >= 0 else size + start
    return "slice", [x], {"dimension": place % len(before), "start": start, "stop": start + after[place]}


def _cat(node: Any) -> Made | Node:
    parts = [each for each in node.args[0] if 0 not in each.meta["val"].shape]
    return ("cat", parts, {"dimension": _argument(node, 1, 0) % _rank(node)}) if len(parts) > 1 else parts[0]


def _part(node: Any) -> Made | Node:
    """Return a part of what is split, at its place among the parts."""
    whole, index = node.args
    if whole.target not in _SPLITS:
        raise GraphError(f"{whole.target} gives several results, which a graph has no operator for")
    x, dimension = whole.args[0], (whole.args[2] if len(whole.args) > 2 else whole.kwargs.get("dim", 0)) % _rank(node)
    sizes = [each.shape[dimension] for each in whole.meta["val"]]
    start = sum(sizes[:index])
    return "slice", [x], {"dimension": dimension, "start": start, "stop": start + sizes[index]}


def _mean(node: Any) -> Made:
    x: Any = node.args[0]
    if [each % _rank(x) for each in node.args[1]] != [_rank(x) - 1] or not _argument(node, 2, False):
        raise GraphError(f"a mean over {node.args[1]}")
    return "mean", [x], {}


def _linear(node: Any) -> Made:
    return "linear", [each for each in node.args if each is not None], {}


def _named_linear(node: Any) -> Made:
    x, weight, _, bias = node.args
    return "linear", [x, weight, *([] if bias is None else [bias])], {}


def _layer_norm(node: Any) -> Made:
    x, _, *weights = node.args[:4]
    return (
        "layer_norm",
        [x, *(each for each in weights if each is not None)],
        {"epsilon": float(_argument(node, 4, 1e-5))},
    )


def _attributes(name: str, operands: int, *names: str) -> Callable[[Any], Made]:
    return lambda node: (name, list(node.args[:operands]), dict(zip(names, node.args[operands:], strict=True)))


_own: Any = torch.ops.aibit_graph
_ROWS: dict[Any, Callable[[Any], Made | Node]] = {
    **{
        getattr(aten, name).default: _plain(name)
        for name in ("neg", "rsqrt", "sqrt", "exp", "cos", "sin", "tanh", "sigmoid", "relu", "silu", "matmul")
    },
    aten.matmul.default: lambda node: ("matmul", list(node.args), {}),
    aten.bmm.default: lambda node: ("matmul", list(node.args), {}),
    **{getattr(aten, name).Tensor: _binary(name) for name in ("add", "sub", "mul", "div")},
    aten.gelu.default: lambda node: ("gelu", [node.args[0]], {"tanh": node.kwargs.get("approximate") == "tanh"}),
    aten.pow.Tensor_Scalar: lambda node: ("pow", [node.args[0]], {"exponent": node.args[1]}),
    aten.to.dtype: _cast, aten._to_copy.default: _cast, aten.to.dtype_layout: _cast, aten.to.device: _cast,
    aten.clone.default: _cast, aten.contiguous.default: _cast, aten.dropout.default: _cast, aten.detach_.default: _cast,
    aten.alias.default: _cast, aten.lift_fresh_copy.default: _cast, aten.detach.default: _cast,
    aten.view.default: _shaped("reshape"), aten.reshape.default: _shaped("reshape"),
    aten._unsafe_view.default: _shaped("reshape"), aten.flatten.using_ints: _shaped("reshape"),
    aten.squeeze.dim: _shaped("reshape"), aten.expand.default: _shaped("expand"), aten.transpose.int: _transpose,
    aten.unsqueeze.default: lambda node: ("unsqueeze", [node.args[0]], {"dimension": node.args[1] % _rank(node)}),
    aten.slice.Tensor: _slice, aten.cat.default: _cat, aten.mean.dim: _mean, aten.linear.default: _linear,
    aten.embedding.default: lambda node: ("embedding", [node.args[1], node.args[0]], {}),
    aten.layer_norm.default: _layer_norm,
    aten.type_as.default: _cast, aten.square.default: lambda node: ("pow", [node.args[0]], {"exponent": 2}),
    operator.getitem: _part,
    _own.linear.default: _named_linear,
    _own.embedding.default: lambda node: ("embedding", list(node.args[:2]), {}),
    _own.rms_norm.default: _attributes("rms_norm", 2, "epsilon", "offset", "rounds"),
    _own.attention.default: _attributes("attention", 3, "layer", "scale", "window", "cap"),
    _own.full_attention.default: _attributes("full_attention", 3, "scale", "cap"),
    _own.rotary.default: _attributes("rotary", 3),
    _own.gated.default: _attributes("gated", 2, "activation"),
}  # fmt: skip
_SPLITS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_chunk.default}
_SKIPPED = {aten._assert_tensor_metadata.default, aten.sym_size.int, *_SPLITS}  # whose parts are rows
