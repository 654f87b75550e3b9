"""Finds rotary embeddings and gates among the operators of an export, and joins each to one."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from . import custom_ops

aten: Any = torch.ops.aten
_ACTIVATIONS = {aten.silu.default: "silu", aten.relu.default: "relu"}


def join(graph: Graph) -> None:
    """Replace what ``rotary`` and ``gated`` compute by them."""
    for node in list(graph.nodes):
        for match in (_rotary, _gated):
            found = match(node)
            if found is not None:
                operator, arguments = found
                with graph.inserting_after(node):
                    joined = graph.call_function(operator, arguments)
                joined.meta = dict(node.meta)
                node.replace_all_uses_with(joined)
                break
    graph.eliminate_dead_code()


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, Node) and value.target is target


def _rotary(node: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """Match x * cos + cat(-second half of x, first half of x) * sin, as Llama and most others turn."""
    if not (_is(node, aten.add.Tensor) and all(_is(each, aten.mul.Tensor) for each in node.args[:2])):
        return None
    (x, cosines), (turned, sines) = (each.args for each in node.args[:2])
    if not (_is(turned, aten.cat.default) and isinstance(cosines, Node) and isinstance(sines, Node)):
        return None
    parts: Any = turned.args[0]
    if len(parts) != 2 or not _is(parts[0], aten.neg.default):
        return None
    second, first = parts[0].args[0], parts[1]
    if not (_is(second, aten.slice.Tensor) and _is(first, aten.slice.Tensor)):
        return None
    shape = x.meta["val"].shape
    half = shape[-1] // 2
    last = len(shape) - 1
    halves = first.args[:4] == (x, last, 0, half) and second.args[:3] == (x, last, half)
    angles = [each.meta["val"] for each in (cosines, sines)]
    turns = (x.meta["val"].dtype, (1, 1, *shape[2:]))
    alike = len(shape) == 4 and all((each.dtype, tuple(each.shape)) == turns for each in angles)
    return (custom_ops.rotary_op, (x, cosines, sines)) if halves and alike and not shape[-1] % 2 else None


def _gated(node: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """Match activation(gate) * up."""
    if not _is(node, aten.mul.Tensor):
        return None
    for active, up in (node.args[:2], node.args[1::-1]):
        if not (isinstance(active, Node) and isinstance(up, Node) and len(active.users) == 1):
            continue
        activation = _ACTIVATIONS.get(active.target)
        if active.target is aten.gelu.default and active.kwargs.get("approximate") == "tanh":
            activation = "gelu_tanh"
        gate: Any = active.args[0] if activation else None
        if gate is not None and _like(gate, up):
            return custom_ops.gated_op, (gate, up, activation)
    return None


def _like(first: Any, second: Any) -> bool:
    a, b = first.meta["val"], second.meta["val"]
    return a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape)
