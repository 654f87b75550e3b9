"""Translates the operators of stored graphs to ONNX: a function for each, in one table.

All is computed in float32. A sequence's keys and values go in and out: ``past_key_values.I.key`` [1, groups, past, e]
and ``present.I.key``, where what is new is put behind what was there. Shapes have at most one size that is no number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import WriteError
from ...graph.program import INPUTS, Constant, Node, Operand, Program, Size, Tensor
from .weights import Weights

MICROSOFT = "com.microsoft"  # the domain of MatMulNBits
IDS, POSITIONS, LOGITS, STATES = "input_ids", "position_ids", "logits", "last_hidden_state"
_TYPES = {"i64": 7, "f32": 1, "bf16": 1, "f16": 1}  # of ONNX; floats are float32
_FLOAT = 1


@dataclass
class Step:
    """Describes a node of ONNX."""

    operator: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


@dataclass
class Cached:
    """Describes the keys or values of a layer: their names coming in and going out, heads and columns."""

    past: str
    present: str
    heads: int
    columns: int


@dataclass
class Translation:
    """Translates a program; ``steps`` and ``caches`` are what comes of it."""

    program: Program
    weights: Weights
    accuracy: int
    steps: list[Step] = field(default_factory=list)
    caches: list[Cached] = field(default_factory=list)
    output: str = ""
    _count: int = 0

    def run(self) -> None:
        """Translate all nodes.

        Raises:
            WriteError: an operator has no counterpart.
        """
        names = [IDS, POSITIONS]
        for node in self.program.nodes:
            function = _OPERATORS.get(node.operator)
            if function is None:
                raise WriteError(
                    f"{self.weights.file.path}: operator {node.operator!r} of its graph is unknown in ONNX"
                )
            operands = [self._operand(each, names) for each in node.operands]
            names.append(function(self, node, operands))
        self.output = names[-1]

    def _operand(self, operand: Operand, names: list[str]) -> str:
        if isinstance(operand, Tensor):
            return operand.name
        if isinstance(operand, Constant):
            shape, values = self.program.constants[operand.index]
            return self.weights.constant(np.array(values, np.float32).reshape(shape))
        return names[operand]

    def add(self, operator: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        self._count += 1
        output = f"{operator.lower()}_{self._count}"
        self.steps.append(Step(operator, list(inputs), output, attributes, domain))
        return output

    def number(self, value: float, floats: bool = True) -> str:
        """Return the name of one number."""
        return self.weights.constant(np.array(value, np.float32 if floats else np.int64))

    def sizes(self, shape: Sequence[Size]) -> str:
        """Return the name of a shape; the size that is not a number is what is left."""
        return self.weights.constant(np.array([-1 if isinstance(size, str) else size for size in shape], np.int64))

    def read(self, name: str) -> str:
        """Return the values of a tensor, float32."""
        found, dtype = self.weights.values(name)
        return found if dtype == "float32" else self.add("Cast", [found], to=_FLOAT)


Function = Callable[[Translation, Node, list[str]], str]


def _plain(operator: str) -> Function:
    return lambda made, node, operands: made.add(
        operator, [_value(made, node, i, operands) for i in range(len(operands))]
    )


def _value(made: Translation, node: Node, place: int, operands: list[str]) -> str:
    """Return an operand; a tensor of the file as its values."""
    return made.read(operands[place]) if isinstance(node.operands[place], Tensor) else operands[place]


def _binary(operator: str) -> Function:
    def translate(made: Translation, node: Node, operands: list[str]) -> str:
        floats = node.spec.dtype != "i64"
        values = []
        for i, operand in enumerate(node.operands):
            value = _value(made, node, i, operands)
            whole = isinstance(operand, int) and _dtype(made, operand) == "i64"
            values.append(made.add("Cast", [value], to=_FLOAT) if floats and whole else value)
        if "other" in node.attributes:
            values.append(made.number(node.attributes["other"], floats))
        return made.add(operator, values)

    return translate


def _dtype(made: Translation, value: int) -> str:
    return "i64" if value < INPUTS else made.program.nodes[value - INPUTS].spec.dtype


def _rsqrt(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Reciprocal", [made.add("Sqrt", operands)])


def _silu(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Mul", [operands[0], made.add("Sigmoid", operands)])


def _gelu(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Gelu", operands, approximate="tanh" if node.attributes["tanh"] else "none")


def _pow(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Pow", [operands[0], made.number(node.attributes["exponent"])])


def _cast(made: Translation, node: Node, operands: list[str]) -> str:
    (operand,) = node.operands
    before = _dtype(made, operand) if isinstance(operand, int) else "f32"
    value = _value(made, node, 0, operands)
    return value if _TYPES[before] == _TYPES[node.spec.dtype] else made.add("Cast", [value], to=_TYPES[node.spec.dtype])


def _mean(made: Translation, node: Node, operands: list[str]) -> str:
    return _mean_of(made, operands[0])


def _mean_of(made: Translation, value: str) -> str:
    return made.add("ReduceMean", [value, made.weights.constant(np.array([-1], np.int64))], keepdims=1)


def _reshape(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Reshape", [operands[0], made.sizes(node.attributes["shape"])])


def _expand(made: Translation, node: Node, operands: list[str]) -> str:
    sizes = [1 if isinstance(size, str) else size for size in node.attributes["shape"]]
    if any(isinstance(size, str) for size in node.attributes["shape"]):
        mask = np.array([isinstance(size, str) for size in node.attributes["shape"]], bool)
        tokens = made.add("Shape", [IDS], start=1, end=2)
        shape = made.add(
            "Where", [made.weights.constant(mask), tokens, made.weights.constant(np.array(sizes, np.int64))]
        )
    else:
        shape = made.weights.constant(np.array(sizes, np.int64))
    return made.add("Expand", [operands[0], shape])


def _transpose(made: Translation, node: Node, operands: list[str]) -> str:
    order = list(range(len(node.spec.shape)))
    a, b = node.attributes["first"], node.attributes["second"]
    order[a], order[b] = order[b], order[a]
    return made.add("Transpose", [operands[0]], perm=order)


def _unsqueeze(made: Translation, node: Node, operands: list[str]) -> str:
    return made.add("Unsqueeze", [operands[0], _one(made, node.attributes["dimension"])])


def _slice(made: Translation, node: Node, operands: list[str]) -> str:
    bounds = [_one(made, node.attributes[key]) for key in ("start", "stop", "dimension")]
    return made.add("Slice", [_value(made, node, 0, operands), *bounds])


def _one(made: Translation, value: int) -> str:
    return made.weights.constant(np.array([value], np.int64))


def _cat(made: Translation, node: Node, operands: list[str]) -> str:
    values = [_value(made, node, i, operands) for i in range(len(operands))]
    return made.add("Concat", values, axis=node.attributes["dimension"])


def _linear(made: Translation, node: Node, operands: list[str]) -> str:
    x, name = operands[:2]
    rows = node.spec.shape[-1]
    columns = made.weights.info(name).shape[-1]
    packed = made.weights.packed(name)
    if packed is not None:
        product = made.add(
            "MatMulNBits", [x, *packed.operands], MICROSOFT, K=columns, N=rows, bits=packed.bits,
            block_size=packed.group, accuracy_level=made.accuracy,
        )  # fmt: skip
        return product if len(operands) < 3 else made.add("Add", [product, made.read(operands[2])])
    weight = _decoded_rows(made, name)
    flat = made.add("Reshape", [x, made.weights.constant(np.array([-1, columns], np.int64))])
    bias = [made.read(operands[2])] if len(operands) > 2 else []
    product = made.add("Gemm", [flat, weight, *bias], transB=1)
    return made.add("Reshape", [product, made.sizes(node.spec.shape)])


def _decoded_rows(made: Translation, name: str) -> str:
    """Return a weight [N, K] as floats: decoded while the graph runs if its codes lie in the file."""
    if made.weights.in_place and (found := made.weights.rows_of_codes(name)) is not None:
        codes, scales, _ = found
        flat = made.add("Reshape", [scales, made.weights.constant(np.array([-1], np.int64))])
        return made.add("DequantizeLinear", [codes, flat], axis=0)
    return made.read(name)


def _embedding(made: Translation, node: Node, operands: list[str]) -> str:
    ids, name = operands
    found = made.weights.rows_of_codes(name)
    if found is None:
        table, dtype = made.weights.values(name)
        rows = made.add("Gather", [table, ids], axis=0)
        return rows if dtype == "float32" else made.add("Cast", [rows], to=_FLOAT)
    codes, scales, zero = found
    rows = made.add("Cast", [made.add("Gather", [codes, ids], axis=0)], to=_FLOAT)
    if zero:
        rows = made.add("Sub", [rows, made.number(zero)])
    return made.add("Mul", [rows, made.add("Gather", [scales, ids], axis=0)])


def _layer_norm(made: Translation, node: Node, operands: list[str]) -> str:
    x, size = operands[0], int(node.spec.shape[-1])
    weight = made.read(operands[1]) if len(operands) > 1 else made.weights.constant(np.ones(size, np.float32))
    bias = [made.read(operands[2])] if len(operands) > 2 else []
    return made.add("LayerNormalization", [x, weight, *bias], axis=-1, epsilon=float(node.attributes["epsilon"]))


def _rms_norm(made: Translation, node: Node, operands: list[str]) -> str:
    x, offset = operands[0], node.attributes["offset"]
    weight = made.read(operands[1])
    weight = made.add("Add", [weight, made.number(offset)]) if offset else weight
    mean = made.add("Add", [_mean_of(made, made.add("Mul", [x, x])), made.number(node.attributes["epsilon"])])
    return made.add("Mul", [made.add("Div", [x, made.add("Sqrt", [mean])]), weight])


def _rotary(made: Translation, node: Node, operands: list[str]) -> str:
    x, cosines, sines = (_value(made, node, i, operands) for i in range(3))
    half = int(node.spec.shape[-1]) // 2
    first = made.add("Slice", [x, *(_one(made, each) for each in (0, half, -1))])
    second = made.add("Slice", [x, *(_one(made, each) for each in (half, 2 * half, -1))])
    turned = made.add("Concat", [made.add("Neg", [second]), first], axis=-1)
    return made.add("Add", [made.add("Mul", [x, cosines]), made.add("Mul", [turned, sines])])


def _attention(made: Translation, node: Node, operands: list[str]) -> str:
    query, layer = operands[0], node.attributes["layer"]
    shapes = [_shape(made, node, i) for i in range(3)]
    heads, groups = int(shapes[0][1]), int(shapes[1][1])
    kept = []
    for value, kind, shape in zip(operands[1:], ("key", "value"), shapes[1:], strict=True):
        cached = Cached(f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", groups, int(shape[-1]))
        made.steps.append(Step("Concat", [cached.past, value], cached.present, {"axis": 2}))
        made.caches.append(cached)
        kept.append(_repeated(made, cached.present, groups, heads // groups, cached.columns))
    scores = _scores(made, node, query, kept[0])
    seen = _seen(made, f"present.{layer}.key", node.attributes["window"])
    scores = made.add("Where", [seen, scores, made.number(-np.inf)])
    found = made.add("MatMul", [made.add("Softmax", [scores], axis=-1), kept[1]])
    return made.add("Transpose", [found], perm=[0, 2, 1, 3])


def _full_attention(made: Translation, node: Node, operands: list[str]) -> str:
    query, key, value = operands
    shapes = [_shape(made, node, i) for i in range(3)]
    heads, groups = int(shapes[0][1]), int(shapes[1][1])
    key, value = (
        _repeated(made, each, groups, heads // groups, int(shape[-1]))
        for each, shape in zip((key, value), shapes[1:], strict=True)
    )
    scores = _scores(made, node, query, key)
    found = made.add("MatMul", [made.add("Softmax", [scores], axis=-1), value])
    return made.add("Transpose", [found], perm=[0, 2, 1, 3])


def _scores(made: Translation, node: Node, query: str, key: str) -> str:
    scores = made.add("MatMul", [query, made.add("Transpose", [key], perm=[0, 1, 3, 2])])
    scores = made.add("Mul", [scores, made.number(node.attributes["scale"])])
    if cap := node.attributes["cap"]:
        scores = made.add("Tanh", [made.add("Div", [scores, made.number(cap)])])
        scores = made.add("Mul", [scores, made.number(cap)])
    return scores


def _repeated(made: Translation, value: str, groups: int, times: int, columns: int) -> str:
    """Return [1, groups, n, columns] as [1, heads, n, columns]."""
    if times == 1:
        return value
    apart = made.add("Unsqueeze", [value, _one(made, 2)])
    several = made.add("Concat", [apart] * times, axis=2)
    return made.add("Reshape", [several, made.weights.constant(np.array([1, groups * times, -1, columns], np.int64))])


def _seen(made: Translation, keys: str, window: int) -> str:
    """Return which keys each query attends to: bool [s, n]."""
    count = made.add("Squeeze", [made.add("Shape", [keys], start=2, end=3)])
    places = made.add("Range", [made.number(0, False), count, made.number(1, False)])
    queries = made.add("Reshape", [POSITIONS, made.weights.constant(np.array([-1, 1], np.int64))])
    seen = made.add("LessOrEqual", [places, queries])
    if window:
        first = made.add("Sub", [queries, made.number(window, False)])
        seen = made.add("And", [seen, made.add("Greater", [places, first])])
    return seen


def _shape(made: Translation, node: Node, place: int) -> Sequence[Size]:
    operand = node.operands[place]
    return made.program.nodes[operand - INPUTS].spec.shape if isinstance(operand, int) else ()


def _gated(made: Translation, node: Node, operands: list[str]) -> str:
    gate, up = operands
    activation = node.attributes["activation"]
    if activation == "silu":
        active = _silu(made, node, [gate])
    elif activation == "relu":
        active = made.add("Relu", [gate])
    else:
        active = made.add("Gelu", [gate], approximate="tanh")
    return made.add("Mul", [active, up])


def _last(made: Translation, node: Node, operands: list[str]) -> str:
    return operands[0]  # logits of all tokens


_OPERATORS: dict[str, Function] = {
    "neg": _plain("Neg"), "exp": _plain("Exp"), "sqrt": _plain("Sqrt"), "cos": _plain("Cos"), "sin": _plain("Sin"),
    "tanh": _plain("Tanh"), "sigmoid": _plain("Sigmoid"), "relu": _plain("Relu"), "matmul": _plain("MatMul"),
    "add": _binary("Add"), "sub": _binary("Sub"), "mul": _binary("Mul"), "div": _binary("Div"),
    "rsqrt": _rsqrt, "silu": _silu, "gelu": _gelu, "pow": _pow, "cast": _cast, "mean": _mean, "reshape": _reshape,
    "expand": _expand, "transpose": _transpose, "unsqueeze": _unsqueeze, "slice": _slice, "cat": _cat,
    "linear": _linear, "embedding": _embedding, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "rotary": _rotary,
    "attention": _attention, "full_attention": _full_attention, "gated": _gated, "last": _last,
}  # fmt: skip
