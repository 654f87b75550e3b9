"""Lists the operators that a program may use, with the attributes each has and the shape and dtype of its result.

Names and meanings are torch's (``aten``), but for those of our own, for what takes a model's time between products:
rms_norm, rotary, attention, full_attention, gated and last. ``spec/graph.md`` says what each computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import GraphError
from .program import DTYPES, TOKENS, WANTED, Attributes, Shape, Size, Spec

FLOATS = ("f32", "bf16", "f16")
ACTIVATIONS = ("silu", "gelu_tanh", "relu")
Infer = Callable[[Sequence[Spec], Attributes], Spec]
Valid = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return (type(value) is float and abs(value) < 1e38) or _integer(value)


def _exponent(value: Any) -> bool:
    return _number(value) and abs(value) <= 64


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _integer(value: Any) -> bool:
    return type(value) is int and -(1 << 31) < value < 1 << 31


def _flag(value: Any) -> bool:
    return type(value) is bool


def _sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(each == TOKENS or (_natural(each) and each) for each in value)


@dataclass(frozen=True, slots=True)
class Operator:
    """Describes an operator: how many operands it takes, its attributes, and what comes of it.

    ``weight`` is the place of the operand that is a tensor in any scheme, as those after it are tensors, and what is
    before it a value; tensors elsewhere are floats as they are.
    """

    least: int
    most: int
    infer: Infer
    attributes: dict[str, Valid] = field(default_factory=dict)
    optional: dict[str, Valid] = field(default_factory=dict)
    weight: int | None = None


def _expect(condition: bool, what: str, found: Any = None, expected: Any = None) -> None:
    if not condition:
        raise GraphError(what, expected=expected, found=found)


def _floats(specs: Sequence[Spec]) -> None:
    for spec in specs:
        _expect(spec.dtype in FLOATS, "operand", spec, "floats")


def _same(specs: Sequence[Spec], _: Attributes) -> Spec:
    _floats(specs)
    return specs[0]


def promoted(first: str, second: str) -> str:
    """Return the dtype of a result of two, as torch has it."""
    if first == second or second == "i64":
        return first
    return second if first == "i64" else "f32"


def broadcast(first: Shape, second: Shape) -> Shape:
    """Return the shape of a result of two, whose sizes are the same from the last on, or 1."""
    rank = max(len(first), len(second))
    a, b = ((1,) * (rank - len(each)) + each for each in (first, second))
    _expect(all(x == y or 1 in (x, y) for x, y in zip(a, b, strict=True)), "shapes of operands", f"{first}, {second}")
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _binary(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    _expect((len(specs) == 1) == ("other" in attributes), "operands", len(specs), "two, or one and a number")
    counts = len(specs) == 1 and type(attributes["other"]) is int  # positions that are counted on
    _expect(counts or any(spec.dtype in FLOATS for spec in specs), "operands", specs[0], "floats")
    if len(specs) == 1:
        return specs[0]
    return Spec(promoted(specs[0].dtype, specs[1].dtype), broadcast(specs[0].shape, specs[1].shape))


def _quotient(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    _floats(specs[:1])
    return _binary(specs, attributes)


def _cast(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    return Spec(attributes["dtype"], specs[0].shape)


def _mean(specs: Sequence[Spec], _: Attributes) -> Spec:
    _floats(specs)
    _expect(len(specs[0].shape) > 0, "rank", 0)
    return Spec(specs[0].dtype, (*specs[0].shape[:-1], 1))


def _matmul(specs: Sequence[Spec], _: Attributes) -> Spec:
    _floats(specs)
    a, b = specs
    _expect(len(a.shape) == len(b.shape) >= 2, "ranks", f"{a}, {b}", "the same, at least 2")
    _expect(a.shape[-1] == b.shape[-2] and a.dtype == b.dtype, "operands", f"{a}, {b}")
    return Spec(a.dtype, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def _counted(shape: Shape) -> tuple[int, list[Size]]:
    return math.prod(size for size in shape if isinstance(size, int)), sorted(
        size for size in shape if isinstance(size, str)
    )


def _reshape(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    shape = tuple(attributes["shape"])
    _expect(_counted(shape) == _counted(specs[0].shape), "elements", shape, specs[0])
    return Spec(specs[0].dtype, shape)


def _expand(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    shape = tuple(attributes["shape"])
    _expect(broadcast(specs[0].shape, shape) == shape, "shape", shape, specs[0])
    return Spec(specs[0].dtype, shape)


def _dimension(value: int, rank: int) -> int:
    _expect(0 <= value < rank, "dimension", value, f"less than {rank}")
    return value


def _transpose(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    shape = list(specs[0].shape)
    a, b = (_dimension(attributes[key], len(shape)) for key in ("first", "second"))
    shape[a], shape[b] = shape[b], shape[a]
    return Spec(specs[0].dtype, tuple(shape))


def _unsqueeze(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    shape = list(specs[0].shape)
    shape.insert(_dimension(attributes["dimension"], len(shape) + 1), 1)
    return Spec(specs[0].dtype, tuple(shape))


def _slice(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    shape = list(specs[0].shape)
    place, start, stop = (attributes[key] for key in ("dimension", "start", "stop"))
    size = shape[_dimension(place, len(shape))]
    _expect(isinstance(size, int) and start < stop <= size, "part", f"{start} to {stop}", f"of {size}")
    shape[place] = stop - start
    return Spec(specs[0].dtype, tuple(shape))


def _cat(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    first, place = specs[0], attributes["dimension"]
    _dimension(place, len(first.shape))
    total = 0
    for spec in specs:
        size = spec.shape[place] if len(spec.shape) == len(first.shape) else None
        others = [*first.shape[:place], *first.shape[place + 1 :]]
        alike = isinstance(size, int) and [*spec.shape[:place], *spec.shape[place + 1 :]] == others
        _expect(alike and spec.dtype == first.dtype, "operand", spec, first)
        total += size  # type: ignore[operator]
    return Spec(first.dtype, (*first.shape[:place], total, *first.shape[place + 1 :]))


def _linear(specs: Sequence[Spec], _: Attributes) -> Spec:
    x, weight, *bias = specs  # the weight's dtype is that of its scheme: it is decoded to that of x
    _floats([x, *bias])
    _expect(len(weight.shape) == 2 and x.shape[-1:] == weight.shape[1:], "operands", f"{x}, {weight}")
    _expect(all(each.shape == weight.shape[:1] for each in bias), "bias", bias and bias[0], list(weight.shape[:1]))
    return Spec(x.dtype, (*x.shape[:-1], weight.shape[0]))


def _embedding(specs: Sequence[Spec], _: Attributes) -> Spec:
    ids, table = specs
    _expect(ids.dtype == "i64" and len(table.shape) == 2 and table.dtype in FLOATS, "operands", f"{ids}, {table}")
    return Spec(table.dtype, (*ids.shape, table.shape[1]))


def _norm(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    x, *weights = specs
    _floats(specs)
    alike = all((each.dtype, each.shape) == (x.dtype, x.shape[-1:]) for each in weights)
    _expect(alike, "weight", ", ".join(map(str, weights)), f"{x.dtype} {list(x.shape[-1:])}")
    _expect(attributes["epsilon"] >= 0, "epsilon", attributes["epsilon"])
    return x


def _rotary(specs: Sequence[Spec], _: Attributes) -> Spec:
    x, cosines, sines = specs
    _floats(specs)
    alike = cosines == sines and cosines.dtype == x.dtype and len(x.shape) == len(cosines.shape) == 4
    sizes = cosines.shape[0] == cosines.shape[1] == 1 and cosines.shape[2:] == x.shape[2:]
    even = isinstance(x.shape[-1], int) and not x.shape[-1] % 2
    _expect(alike and sizes and even, "operands", f"{x}, {cosines}, {sines}")
    return x


def _attention(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    query, key, value = specs
    _floats(specs)
    _expect(all(len(spec.shape) == 4 and spec.dtype == query.dtype for spec in specs), "operands", query)
    heads, groups = query.shape[1], key.shape[1]
    _expect(
        query.shape[0] == 1 and query.shape[2] == TOKENS and query.shape[3] == key.shape[3]
        and key.shape[:3] == (1, groups, TOKENS) == value.shape[:3], "operands", f"{query}, {key}, {value}",
    )  # fmt: skip
    numbers = isinstance(heads, int) and isinstance(groups, int) and not heads % groups
    _expect(numbers, "heads", heads, f"a multiple of {groups}")
    _expect(attributes["cap"] >= 0, "cap", attributes["cap"])
    return Spec(query.dtype, (1, TOKENS, heads, value.shape[3]))


def _gated(specs: Sequence[Spec], attributes: Attributes) -> Spec:
    _floats(specs)
    _expect(specs[0] == specs[1], "operands", f"{specs[0]}, {specs[1]}")
    return specs[0]


def _last(specs: Sequence[Spec], _: Attributes) -> Spec:
    x = specs[0]
    _expect(len(x.shape) == 3 and x.shape[1] == TOKENS, "operand", x, f"[1, {TOKENS}, columns]")
    return Spec(x.dtype, (x.shape[0], WANTED, x.shape[2]))


def _activation(value: Any) -> bool:
    return value in ACTIVATIONS


_UNARY = Operator(1, 1, _same)
_BINARY = Operator(1, 2, _binary, optional={"other": _number})
OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(("neg", "rsqrt", "sqrt", "exp", "cos", "sin", "tanh", "sigmoid", "relu", "silu"), _UNARY),
    **dict.fromkeys(("add", "sub", "mul"), _BINARY),
    "div": Operator(1, 2, _quotient, optional={"other": _number}),
    "gelu": Operator(1, 1, _same, {"tanh": _flag}),
    "pow": Operator(1, 1, _same, {"exponent": _exponent}),
    "cast": Operator(1, 1, _cast, {"dtype": lambda value: value in DTYPES}),
    "mean": Operator(1, 1, _mean),
    "matmul": Operator(2, 2, _matmul),
    "reshape": Operator(1, 1, _reshape, {"shape": _sizes}),
    "expand": Operator(1, 1, _expand, {"shape": _sizes}),
    "transpose": Operator(1, 1, _transpose, {"first": _natural, "second": _natural}),
    "unsqueeze": Operator(1, 1, _unsqueeze, {"dimension": _natural}),
    "slice": Operator(1, 1, _slice, {"dimension": _natural, "start": _natural, "stop": _natural}),
    "cat": Operator(1, 64, _cat, {"dimension": _natural}),
    "linear": Operator(2, 3, _linear, weight=1),
    "embedding": Operator(2, 2, _embedding, weight=1),
    "layer_norm": Operator(1, 3, _norm, {"epsilon": _number}),
    "rms_norm": Operator(2, 2, _norm, {"epsilon": _number, "offset": _number, "rounds": _flag}),
    "rotary": Operator(3, 3, _rotary),
    "attention": Operator(3, 3, _attention, {"layer": _natural, "scale": _number, "window": _natural, "cap": _number}),
    "full_attention": Operator(3, 3, _attention, {"scale": _number, "cap": _number}),
    "gated": Operator(2, 2, _gated, {"activation": _activation}),
    "last": Operator(1, 1, _last),
}
