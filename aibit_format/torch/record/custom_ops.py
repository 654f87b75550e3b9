"""Defines the operators of stored graphs for torch's exporter: steps whose results' shapes it knows.

They are recorded and never run: weights are named, so that none is touched.
"""

# Not "from __future__ import annotations": torch reads the types of an operator's arguments.

import torch
from torch import Tensor
from torch.library import custom_op

from ...interop import torch_dtypes


def _never(*_: object) -> Tensor:
    raise RuntimeError("an operator of stored graphs is recorded, and not run")


@custom_op("aibit_graph::linear", mutates_args=())
def linear(x: Tensor, weight: str, features: int, bias: Tensor | None) -> Tensor:
    """Multiply x [..., in] with the tensor ``weight`` of the file, [features, in]."""
    return _never(x, weight, features, bias)


@linear.register_fake
def _(x: Tensor, weight: str, features: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], features)


@custom_op("aibit_graph::embedding", mutates_args=())
def embedding(ids: Tensor, weight: str, columns: int, dtype: str) -> Tensor:
    """Look up ids in the tensor ``weight`` of the file."""
    return _never(ids, weight, columns, dtype)


@embedding.register_fake
def _(ids: Tensor, weight: str, columns: int, dtype: str) -> Tensor:
    return ids.new_empty(*ids.shape, columns, dtype=torch_dtypes()[dtype])


@custom_op("aibit_graph::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, rounds: bool) -> Tensor:
    """Divide rows by their root mean square, and multiply them; see ``layers.norms``."""
    return _never(x, weight, epsilon, offset, rounds)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float, offset: float, rounds: bool) -> Tensor:
    return torch.empty_like(x)


@custom_op("aibit_graph::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, window: int, cap: float) -> Tensor:
    """Attend to all positions so far; query, key and value are [1, heads, tokens, elements]."""
    return _never(query, key, value, layer, scale, window, cap)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, window: int, cap: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@custom_op("aibit_graph::full_attention", mutates_args=())
def full_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float) -> Tensor:
    """Attend to all tokens of a call, as encoders do; query, key and value are [1, heads, tokens, elements]."""
    return _never(query, key, value, scale, cap)


@full_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@custom_op("aibit_graph::rotary", mutates_args=())
def rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn x [1, heads, tokens, elements] by the angles of its positions."""
    return _never(x, cosines, sines)


@custom_op("aibit_graph::gated", mutates_args=())
def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Compute activation(gate) * up."""
    return _never(gate, up, activation)


rotary_op, gated_op = torch.ops.aibit_graph.rotary.default, torch.ops.aibit_graph.gated.default
