"""Makes of each node of a program a function of tensors: one row for each operator.

Weights are bound to the planes of the file as they are, with the products that layers use. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from ...file.reader import TensorInfo
from ...file.sharded_reader import Opened
from ...graph.operators import FLOATS
from ...graph.program import TOKENS, WANTED, Constant, Node, Program, Tensor
from ...interop import to_torch, torch_dtypes
from ...schemes.fourbit import FourBit
from ...schemes.nf4_cpu import NF4CPU
from ...schemes.plain import Plain
from ..kernels import four_bit, functional, operators
from ..kernels.functional import Weight
from ..kernels.matmul import FEW_ROWS, fast_dtype
from ..kernels.packed import PackedProduct
from .cache import Cache, attend, attend_to_all

Step = Callable[..., torch.Tensor]


@dataclass(slots=True)
class Call:
    """Says of the call that runs: its tokens, the position of the first, and whether results of all are wanted."""

    tokens: int = 0
    first: int = 0
    everything: bool = False


@dataclass(slots=True)
class Binding:
    """Binds the nodes of a checked program to an open file."""

    file: Opened
    program: Program
    call: Call = field(default_factory=Call)
    caches: list[Cache] = field(default_factory=list)
    floats: dict[str, torch.Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of floats, over the pages of the file."""
        if name not in self.floats:
            info, planes = self.planes(name)
            (plane,) = planes.values()
            self.floats[name] = plane.view(info.shape)
        return self.floats[name]

    def planes(self, name: str) -> tuple[TensorInfo, dict[str, torch.Tensor]]:
        """Return a tensor and its planes, whose values are checked."""
        info = self.file.info(name)
        found = self.file.planes(name)
        self.file.check_values(info, found)
        planes = {plane.role: to_torch(found[plane.role], plane.dtype) for plane in info.planes}
        return info, planes

    def constant(self, index: int) -> torch.Tensor:
        """Return a constant, f32."""
        shape, values = self.program.constants[index]
        return torch.tensor(values, dtype=torch.float32).view(shape)

    def step(self, node: Node) -> tuple[Step, tuple[int, ...]]:
        """Return the function of a node, and the numbers of the values that it takes."""
        make = _STEPS[node.operator]
        return make(self, node), tuple(each for each in node.operands if isinstance(each, int))

    def sizes(self, shape: tuple[Any, ...]) -> Callable[[], tuple[int, ...]]:
        """Return a function that gives a shape's sizes in this call."""
        call, fixed = self.call, tuple(shape)
        places = [i for i, size in enumerate(fixed) if size == TOKENS]
        wanted = [i for i, size in enumerate(fixed) if size == WANTED]
        if wanted or len(places) > 1:
            numbers: Callable[[Any], int] = lambda size: (  # noqa: E731
                call.tokens if size == TOKENS or (size == WANTED and call.everything) else 1 if size == WANTED else size
            )
            return lambda: tuple(map(numbers, fixed))
        if not places:
            return lambda: fixed
        before, after = fixed[: places[0]], fixed[places[0] + 1 :]
        return lambda: (*before, call.tokens, *after)


Make = Callable[[Binding, Node], Step]


def _applied(binding: Binding, node: Node, function: Callable[..., torch.Tensor]) -> Step:
    """Return a function of the node's values alone, its tensors and constants put in their places."""
    given = [
        binding.tensor(each.name) if isinstance(each, Tensor) else
        binding.constant(each.index) if isinstance(each, Constant) else None
        for each in node.operands
    ]  # fmt: skip
    if all(each is None for each in given):
        return function

    def step(*values: torch.Tensor) -> torch.Tensor:
        rest = iter(values)
        return function(*(next(rest) if each is None else each for each in given))

    return step


def _plain(function: Callable[..., torch.Tensor]) -> Make:
    return lambda binding, node: _applied(binding, node, function)


def _binary(function: Callable[..., torch.Tensor]) -> Make:
    def make(binding: Binding, node: Node) -> Step:
        other = node.attributes.get("other")
        return _applied(binding, node, function if other is None else lambda x: function(x, other))

    return make


def _with(function: Callable[[Node], Callable[..., torch.Tensor]]) -> Make:
    return lambda binding, node: _applied(binding, node, function(node))


def _shaped(method: Callable[..., torch.Tensor]) -> Make:
    def make(binding: Binding, node: Node) -> Step:
        sizes = binding.sizes(node.spec.shape)
        return _applied(binding, node, lambda x: method(x, sizes()))

    return make


def _linear(binding: Binding, node: Node) -> Step:
    weight, bias = node.operands[1], node.operands[2:]
    info, planes = binding.planes(weight.name)  # type: ignore[union-attr]
    added = binding.tensor(bias[0].name) if bias else None  # type: ignore[union-attr]
    if isinstance(info.scheme, Plain) and info.dtype in FLOATS:
        values = binding.tensor(info.name)
        return lambda x: F.linear(x, values, added)
    if isinstance(info.scheme, FourBit | NF4CPU) and four_bit.Weight.stored(*_four_bit(info, planes)) is not None:
        return _four_bit_linear(info, planes, added)
    product = functional.row_product(info.scheme)
    if isinstance(product, PackedProduct) and functional.ORDER not in planes:
        packed = product.format.weight(planes, tuple(info.shape))  # type: ignore[arg-type]
        rows = lambda part, dtype: product.rows(packed, part, dtype)  # noqa: E731

        def step(x: torch.Tensor) -> torch.Tensor:
            if product.accepts(x):
                return product.times(x, packed, added)
            found = functional.by_pieces(x.reshape(-1, info.shape[1]), tuple(info.shape), rows)  # type: ignore[arg-type]
            found = found if added is None else found + added.to(found.dtype)
            return found.view(*x.shape[:-1], info.shape[0])

        return step
    stored = Weight.of(info.scheme, planes, info.shape, info.dtype)

    def decoded(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.reshape(-1, x.shape[-1]), stored, added).view(*x.shape[:-1], info.shape[0])

    return decoded


def _four_bit(info: TensorInfo, planes: dict[str, torch.Tensor]) -> tuple[FourBit, dict[str, torch.Tensor], Any]:
    return info.scheme.canonical if isinstance(info.scheme, NF4CPU) else info.scheme, planes, info.shape  # type: ignore[return-value]


def _four_bit_linear(info: TensorInfo, planes: dict[str, torch.Tensor], bias: torch.Tensor | None) -> Step:
    """Multiply with nf4 or fp4: few rows in float32, and more in the dtype in which the processor is fast at them."""
    stored = _four_bit(info, planes)

    def step(x: torch.Tensor) -> torch.Tensor:
        weight = four_bit.Weight.stored(*stored)
        added = None if bias is None else bias.to(x.dtype)
        if x.numel() <= FEW_ROWS * x.shape[-1] or fast_dtype(x.dtype) == torch.float32:
            return weight.times(x.reshape(-1, x.shape[-1]), added).view(*x.shape[:-1], info.shape[0])  # type: ignore[union-attr]
        return F.linear(x, weight.values(x.dtype), added)  # type: ignore[union-attr]

    return step


def _embedding(binding: Binding, node: Node) -> Step:
    info, planes = binding.planes(node.operands[1].name)  # type: ignore[union-attr]
    if isinstance(info.scheme, Plain):
        table = binding.tensor(info.name)
        return lambda ids: F.embedding(ids, table)
    stored = Weight.of(info.scheme, planes, info.shape, info.dtype)
    return lambda ids: functional.embedding(ids, stored)


def _rms_norm(node: Node) -> Callable[..., torch.Tensor]:
    epsilon, offset, rounds = (node.attributes[key] for key in ("epsilon", "offset", "rounds"))
    if operators.COMPILED:
        return lambda x, weight: operators.rms_norm(x, weight, epsilon, offset, rounds)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        found = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        if rounds:
            return (weight + offset if offset else weight) * found.to(x.dtype)
        return (found * (offset + weight.float())).to(x.dtype)

    return norm


def _rotary(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cosines + turned * sines


def _attention(binding: Binding, node: Node) -> Step:
    layer, scale, window, cap = (node.attributes[key] for key in ("layer", "scale", "window", "cap"))
    cache, call = binding.caches[layer], binding.call

    def step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = cache.append(call.first, key, value)
        return attend(query, keys, values, call.first, scale, window, cap)

    return step


def _full_attention(node: Node) -> Callable[..., torch.Tensor]:
    scale, cap = (node.attributes[key] for key in ("scale", "cap"))

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attend_to_all(query, key, value, scale, cap)

    return attention


def _gated(node: Node) -> Callable[..., torch.Tensor]:
    activation = node.attributes["activation"]
    if operators.COMPILED:
        return lambda gate, up: operators.gated(activation, gate, up)
    applied = {"silu": F.silu, "relu": F.relu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[activation]
    return lambda gate, up: applied(gate) * up


def _last(binding: Binding, node: Node) -> Step:
    call = binding.call
    return lambda x: x if call.everything else x[:, -1:]


def _layer_norm(node: Node) -> Callable[..., torch.Tensor]:
    epsilon = node.attributes["epsilon"]
    return lambda x, *weights: F.layer_norm(x, x.shape[-1:], *weights, eps=epsilon)


_STEPS: Mapping[str, Make] = {
    **{name: _plain(getattr(torch, name)) for name in (
        "neg", "rsqrt", "sqrt", "exp", "cos", "sin", "tanh", "sigmoid", "relu", "matmul",
    )},
    "silu": _plain(F.silu),
    "add": _binary(torch.add), "sub": _binary(torch.sub), "mul": _binary(torch.mul), "div": _binary(torch.div),
    "gelu": _with(lambda node: lambda x: F.gelu(x, approximate="tanh" if node.attributes["tanh"] else "none")),
    "pow": _with(lambda node: lambda x: x.pow(node.attributes["exponent"])),
    "cast": _with(lambda node: lambda x: x.to(torch_dtypes()[node.attributes["dtype"]])),
    "mean": _plain(lambda x: x.mean(-1, keepdim=True)),
    "reshape": _shaped(torch.Tensor.reshape), "expand": _shaped(torch.Tensor.expand),
    "transpose": _with(lambda node: lambda x: x.transpose(node.attributes["first"], node.attributes["second"])),
    "unsqueeze": _with(lambda node: lambda x: x.unsqueeze(node.attributes["dimension"])),
    "slice": _with(lambda node: lambda x: x.narrow(
        node.attributes["dimension"], node.attributes["start"], node.attributes["stop"] - node.attributes["start"]
    )),
    "cat": _with(lambda node: lambda *each: torch.cat(each, node.attributes["dimension"])),
    "linear": _linear, "embedding": _embedding, "layer_norm": _with(_layer_norm), "rms_norm": _with(_rms_norm),
    "rotary": _plain(_rotary), "attention": _attention,
    "full_attention": _with(_full_attention), "gated": _with(_gated), "last": _last,
}  # fmt: skip
