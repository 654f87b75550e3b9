"""Checks a program against a file before anything of it runs: operators, attributes, shapes, dtypes and tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..container.tables import TensorInfo
from ..errors import GraphError
from ..schemes.plain import Plain
from .operators import FLOATS, OPERATORS, Operator
from .program import INPUTS, MAX_ELEMENTS, TOKENS, WANTED, Constant, Node, Operand, Program, Spec, Tensor

_PLAIN_ELEMENTS = 1 << 26  # of a tensor that is used as it is, like a bias
_CACHED_ELEMENTS = 1 << 22  # keys and values of a position, in all layers
_IDS = Spec("i64", (1, TOKENS))


def check(program: Program, tensors: Mapping[str, TensorInfo]) -> None:
    """Make sure that a program is one: every value is what the node says, and the last are logits.

    Args:
        tensors: those of the file, by name.

    Raises:
        GraphError: a node is not as the specification has it; says which.
    """
    specs: list[Spec] = [_IDS] * INPUTS
    layers: set[int] = set()
    for index, node in enumerate(program.nodes):
        try:
            specs.append(_checked(node, specs, program, tensors, layers))
        except GraphError as error:
            raise error.at(f"node {index} ({node.operator})") from error
    _bounded(program, specs)
    last = specs[-1]
    if len(last.shape) != 3 or last.shape[:2] != (1, WANTED) or last.dtype == "i64":
        raise GraphError("the last value", expected=f"logits, floats [1, {WANTED}, vocabulary]", found=last)
    if layers != set(range(len(layers))):
        raise GraphError("layers of attention", expected=f"0 to {len(layers) - 1}, once each", found=sorted(layers))


def _bounded(program: Program, specs: list[Spec]) -> None:
    """Make sure that memory for one token, and for a position that is kept, is bounded."""
    sizes = [_elements(spec) for spec in specs]
    if sum(sizes) > MAX_ELEMENTS:
        raise GraphError("elements of all values", expected=f"at most {MAX_ELEMENTS} for each token", found=sum(sizes))
    attends = [node for node in program.nodes if node.operator == "attention"]
    kept = sum(sizes[each] for node in attends for each in node.operands[1:] if isinstance(each, int))
    if kept > _CACHED_ELEMENTS:
        raise GraphError("keys and values", expected=f"at most {_CACHED_ELEMENTS} for each token", found=kept)


def _elements(spec: Spec) -> int:
    return math.prod(size for size in spec.shape if isinstance(size, int))


def _checked(
    node: Node, specs: list[Spec], program: Program, tensors: Mapping[str, TensorInfo], layers: set[int]
) -> Spec:
    operator = OPERATORS.get(node.operator)
    if operator is None:
        raise GraphError("unknown operator", expected=f"one of {', '.join(OPERATORS)}", found=node.operator)
    if not operator.least <= len(node.operands) <= operator.most:
        raise GraphError("operands", expected=f"{operator.least} to {operator.most}", found=len(node.operands))
    if (
        not operator.attributes.keys()
        <= node.attributes.keys()
        <= operator.attributes.keys() | operator.optional.keys()
    ):
        raise GraphError("attributes", expected=list(operator.attributes), found=list(node.attributes))
    for key, valid in (operator.attributes | operator.optional).items():
        if key in node.attributes and not valid(node.attributes[key]):
            raise GraphError(f"attribute {key!r}", found=node.attributes[key])
    given = [_spec(each, place, operator, specs, program, tensors) for place, each in enumerate(node.operands)]
    if operator.weight is not None:
        _check_weight(node, operator.weight, given, tensors)
    if node.operator == "attention":
        if node.attributes["layer"] in layers:
            raise GraphError("layer", expected="one that no node before has", found=node.attributes["layer"])
        layers.add(node.attributes["layer"])
    found = operator.infer(given, node.attributes)
    if found != node.spec:
        raise GraphError("result", expected=found, found=node.spec)
    return found


def _check_weight(node: Node, place: int, given: list[Spec], tensors: Mapping[str, TensorInfo]) -> None:
    """Make sure that a value meets a weight: one of floats as they are has its dtype, as torch multiplies no others."""
    for i, each in enumerate(node.operands):
        if not isinstance(each, Tensor if i >= place else int):
            expected = "a tensor of the file" if i >= place else "the number of a value"
            raise GraphError(f"operand {i}", expected=expected, found=each)
    plain = isinstance(tensors[node.operands[place].name].scheme, Plain)  # type: ignore[union-attr]
    decoded = not plain or given[place].dtype not in FLOATS
    if not decoded and given[0].dtype != "i64" and any(spec.dtype != given[0].dtype for spec in given):
        raise GraphError("dtypes", expected=given[0].dtype, found=", ".join(spec.dtype for spec in given))


def _spec(
    operand: Operand,
    place: int,
    operator: Operator,
    specs: list[Spec],
    program: Program,
    tensors: Mapping[str, TensorInfo],
) -> Spec:
    if isinstance(operand, int):
        return specs[operand]
    if isinstance(operand, Constant):
        if operand.index >= len(program.constants):
            raise GraphError("constant", expected=f"less than {len(program.constants)}", found=operand.index)
        return Spec("f32", program.constants[operand.index][0])
    info = tensors.get(operand.name)
    if info is None:
        raise GraphError("no such tensor in the file", found=operand.name)
    if info.transposed:
        raise GraphError(f"tensor {operand.name!r}", expected="one that is not transposed")
    if place != operator.weight:
        elements = 1
        for size in info.shape:
            elements = min(elements * size, _PLAIN_ELEMENTS + 1)
        if not isinstance(info.scheme, Plain) or info.dtype not in FLOATS or not 1 <= elements <= _PLAIN_ELEMENTS:
            found = Spec(info.dtype, info.shape)
            raise GraphError(f"tensor {operand.name!r}", expected=f"1 to {_PLAIN_ELEMENTS} floats", found=found)
        if not info.shape:
            raise GraphError(f"tensor {operand.name!r}", expected="one size or more", found="none")
    return Spec(info.dtype, tuple(info.shape))
