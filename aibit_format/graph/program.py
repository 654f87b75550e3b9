"""Defines a program: the steps that a model computes, as a JSON document ``graph.json`` of a file holds them.

Values are numbered: 0 are the ids i64 [1, s], 1 their positions i64 [1, s], and each node adds the next. A node takes
values before it, constants of the program and tensors of the file, so that there can be no cycle. A size is a number,
or ``"s"``, the tokens of a call, or ``"k"``, those of which results are wanted: the last one, or all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..container.documents import parse_json
from ..errors import FormatError, GraphError

DOCUMENT = "graph.json"
VERSION = 1
INPUTS = 2  # ids, and positions
MAX_BYTES = 1 << 24
MAX_NODES = 1 << 16
MAX_CONSTANTS = 1 << 20  # numbers in all of them
MAX_POSITIONS = 1 << 24
MAX_RANK = 6
LARGEST = 3.4028234663852886e38  # of float32
MAX_ELEMENTS = 1 << 28  # of a value, for each token; and of all values together, see ``check``
DTYPES = ("i64", "f32", "bf16", "f16")
TOKENS, WANTED = "s", "k"  # sizes that differ from call to call

Size = int | str
Shape = tuple[Size, ...]
Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class Spec:
    """Describes a value: its dtype, one of DTYPES, and its shape."""

    dtype: str
    shape: Shape

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Names a tensor of the file as an operand."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """Numbers a constant of the program as an operand."""

    index: int


Operand = int | Tensor | Constant


@dataclass(frozen=True, slots=True)
class Node:
    """Describes a step: an operator of ``operators.OPERATORS``, what it takes, and what comes of it."""

    operator: str
    operands: tuple[Operand, ...]
    attributes: Attributes
    spec: Spec


@dataclass(frozen=True, slots=True)
class Program:
    """Holds the steps from ids to logits.

    Attributes:
        nodes: in the order in which they run.
        constants: numbers that are no weights, f32, as nested lists are in ``shape`` order: (shape, numbers).
        positions: how many positions a sequence has at most.
        made_with: name -> version of what recorded it.
    """

    nodes: tuple[Node, ...]
    constants: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    positions: int
    made_with: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the document, a node a line."""
        head = {"version": VERSION, "made_with": dict(self.made_with), "positions": self.positions}
        constants = [{"shape": shape, "values": values} for shape, values in self.constants]
        lines = [json.dumps(_written(node), separators=(",", ":")) for node in self.nodes]
        text = json.dumps(head | {"constants": constants}, separators=(",", ":"))
        return (text[:-1] + ',"nodes":[\n' + ",\n".join(lines) + "\n]}\n").encode()


def parse(data: bytes | memoryview) -> Program:
    """Parse a document, and check its form; ``check.check`` looks at what it means.

    Raises:
        GraphError: it is no program, or a larger one than is read.
    """
    if len(data) > MAX_BYTES:
        raise GraphError("too many bytes", expected=f"at most {MAX_BYTES}", found=len(data))
    try:
        found = parse_json(DOCUMENT, data)
    except FormatError as error:
        raise GraphError(f"no JSON document: {error.problems[0].what}") from error
    fields = _object(found, "the document", {"version": int, "made_with": dict, "positions": int, "constants": list,
                                             "nodes": list})  # fmt: skip
    if fields["version"] != VERSION:
        raise GraphError("version", expected=VERSION, found=fields["version"])
    if not 1 <= fields["positions"] <= MAX_POSITIONS:
        raise GraphError("positions", expected=f"1 to {MAX_POSITIONS}", found=fields["positions"])
    if not 1 <= len(fields["nodes"]) <= MAX_NODES:
        raise GraphError("number of nodes", expected=f"1 to {MAX_NODES}", found=len(fields["nodes"]))
    made_with = fields["made_with"]
    if not all(isinstance(version, str) for version in made_with.values()):
        raise GraphError("made_with", expected="versions as strings")
    constants, left = [], MAX_CONSTANTS
    for i, each in enumerate(fields["constants"]):
        constants.append(_constant(each, f"constant {i}", left))
        left -= len(constants[-1][1])
    nodes = tuple(_node(each, i) for i, each in enumerate(fields["nodes"]))
    return Program(nodes, tuple(constants), fields["positions"], made_with)


def _written(node: Node) -> dict[str, Any]:
    operands: list[Any] = []
    for each in node.operands:
        operands.append(
            {"tensor": each.name} if isinstance(each, Tensor) else
            {"constant": each.index} if isinstance(each, Constant) else each
        )  # fmt: skip
    written: dict[str, Any] = {"operator": node.operator, "operands": operands}
    if node.attributes:
        written["attributes"] = dict(node.attributes)
    return written | {"dtype": node.spec.dtype, "shape": node.spec.shape}


def _object(value: Any, what: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return an object that has these keys and no others, of these kinds."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise GraphError(f"{what}: keys", expected=list(kinds), found=list(value) if isinstance(value, dict) else value)
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise GraphError(f"{what}: {key!r}", expected=kind.__name__, found=value[key])
    return value


def _constant(value: Any, what: str, left: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    found = _object(value, what, {"shape": list, "values": list})
    shape, values = found["shape"], found["values"]
    if not 1 <= len(shape) <= MAX_RANK or not all(type(size) is int and 1 <= size <= left for size in shape):
        raise GraphError(f"{what}: shape", expected=f"1 to {MAX_RANK} sizes, at most {left} numbers", found=shape)
    if len(values) > left or len(values) != math.prod(shape):
        raise GraphError(f"{what}: numbers", expected=min(math.prod(shape), left), found=len(values))
    if not all(type(each) in (int, float) and abs(each) <= LARGEST for each in values):
        raise GraphError(f"{what}: not all are finite numbers of float32")
    return tuple(shape), tuple(map(float, values))


def _node(value: Any, index: int) -> Node:
    what = f"node {index}"
    if isinstance(value, dict) and "attributes" not in value:
        value = value | {"attributes": {}}
    found = _object(value, what, {"operator": str, "operands": list, "attributes": dict, "dtype": str, "shape": list})
    operands = tuple(_operand(each, what, index) for each in found["operands"])
    return Node(found["operator"], operands, found["attributes"], _spec(found, what))


def _operand(value: Any, what: str, index: int) -> Operand:
    if type(value) is int:
        if not 0 <= value < INPUTS + index:
            raise GraphError(f"{what}: operand", expected=f"a value before {INPUTS + index}", found=value)
        return value
    if isinstance(value, dict) and len(value) == 1:
        (kind, given), = value.items()  # fmt: skip
        if kind == "tensor" and isinstance(given, str):
            return Tensor(given)
        if kind == "constant" and type(given) is int and given >= 0:
            return Constant(given)
    raise GraphError(f"{what}: operand", expected="the number of a value, a tensor or a constant", found=value)


def _spec(found: Mapping[str, Any], what: str) -> Spec:
    if found["dtype"] not in DTYPES:
        raise GraphError(f"{what}: dtype", expected=f"one of {', '.join(DTYPES)}", found=found["dtype"])
    shape = found["shape"]
    sizes = [each for each in shape if type(each) is int]
    named = [each for each in shape if type(each) is not int]
    if not 1 <= len(shape) <= MAX_RANK or len(named) > 1 or not all(each in (TOKENS, WANTED) for each in named):
        expected = f"1 to {MAX_RANK} sizes, numbers and at most one {TOKENS} or {WANTED}"
        raise GraphError(f"{what}: shape", expected=expected, found=shape)
    if not all(1 <= size <= MAX_ELEMENTS for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        raise GraphError(f"{what}: elements", expected=f"at most {MAX_ELEMENTS} for each token", found=shape)
    return Spec(found["dtype"], tuple(shape))
