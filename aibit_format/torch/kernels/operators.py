"""Computes what models compute between products, by compiled code: norms, rotary embeddings, attention, gates.

A token of a small model spends most of its time there: torch takes 20 microseconds for a norm of 576 columns, and 120
for attention to 128 positions, of which compiled code takes 3 and 10. All is on a CPU and without gradients, in float32
within, rounded where transformers' models round.
"""

from __future__ import annotations

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[reportPrivateImportUsage]

from ... import native
from .openmp import threads

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
COMPILED = native.packed_target is not None
ACTIVATIONS = ("silu", "gelu_tanh", "relu")
_UNIT = 8  # elements; heads have a multiple
FEW_QUERIES = 16  # for more, torch's blocks of queries are faster


def computes(*tensors: torch.Tensor) -> bool:
    """Return whether tensors are computed with here: floats of one dtype on a CPU, and no gradients are wanted."""
    first = tensors[0]
    return (
        COMPILED
        and first.dtype in NAMES
        and all(each.is_cpu and each.dtype == first.dtype and not each.requires_grad for each in tensors)
        and not torch.compiler.is_compiling()
    )


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, offset: float = 0.0, rounds: bool = True
) -> torch.Tensor:
    """Divide rows of x [..., columns] by their root mean square, and multiply them by ``offset`` + weight [columns].

    ``rounds`` says that the quotient is rounded to the dtype of x before, as most models do; Gemma's do not.
    """
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    columns = x.shape[-1]
    memory = None if weight is None else to_dlpack(weight.detach().contiguous())
    native.rms_norm(
        x.numel() // max(columns, 1), columns, to_dlpack(x), memory, NAMES[x.dtype if weight is None else weight.dtype],
        to_dlpack(out), NAMES[x.dtype], epsilon, offset, rounds, *threads(),
    )  # fmt: skip
    return out


def rotary(
    x: torch.Tensor, cosines: torch.Tensor | None, sines: torch.Tensor | None, out: torch.Tensor, first: int
) -> None:
    """Turn x [batch, positions, heads, elements] by its positions' angles, and put it into a cache.

    Args:
        cosines, sines: [1 or batch, positions, turned], of which elements after the first ``turned`` are left as they
            are; None: nothing is turned.
        out: [batch, heads, capacity, elements], filled from position ``first`` on.
    """
    x = x.contiguous()
    angles, turned = (1, 0) if cosines is None else (cosines.shape[0], cosines.shape[-1])
    batch, positions, heads, size = x.shape
    cosine, sine = (None if each is None else to_dlpack(each.contiguous()) for each in (cosines, sines))
    native.rotary(
        (batch, positions, heads, size), to_dlpack(x), angles, turned, cosine, sine, to_dlpack(out), out.shape[2],
        first, NAMES[x.dtype], *threads(),
    )  # fmt: skip


def attends(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether ``attend`` takes tensors of these shapes: few queries, a cache in one piece, whole heads."""
    return (
        computes(query, key, value)
        and query.shape[2] <= min(FEW_QUERIES, key.shape[2])
        and key.is_contiguous()
        and value.is_contiguous()
        and not key.shape[3] % _UNIT
        and not value.shape[3] % _UNIT
        and not query.shape[1] % key.shape[1]
    )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, keys: int | None = None,
    cap: float = 0.0, window: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Attend from the last positions of a cache to all up to each: [batch, queries, heads, elements of values].

    Args:
        query: [batch, heads, queries, elements].
        key, value: [batch, heads of keys, capacity, elements], contiguous; ``keys`` positions of them are used, None:
            all.
        scale: by which products of queries and keys are multiplied.
        cap: scores become cap * tanh(score / cap); 0: they stay.
        window: how many positions a query attends to, its own being the last; 0: all.
    """
    batch, heads, queries, size = query.shape
    _, groups, capacity, value_size = value.shape
    query = query.contiguous()
    out = query.new_empty(batch, queries, heads, value_size)
    shape = batch, groups, heads // groups, queries, capacity if keys is None else keys, capacity, size, value_size
    native.attention(
        shape, to_dlpack(query), to_dlpack(key), to_dlpack(value), to_dlpack(out), NAMES[query.dtype], scale, cap,
        window, *threads(),
    )  # fmt: skip
    return out


def gated(activation: str, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """Compute activation(gate) * up, the activation, one of ACTIVATIONS, rounded to the dtype of both."""
    gate = gate.contiguous()
    out = torch.empty_like(gate)
    memory = None if up is None else to_dlpack(up.contiguous())
    native.gated(activation, gate.numel(), to_dlpack(gate), memory, to_dlpack(out), NAMES[gate.dtype], *threads())
    return out
