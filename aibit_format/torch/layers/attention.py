"""Computes attention where torch's is slow: of one token to a cache, and in 16 bits on processors that lack them.

From one token to 128 positions torch's attention takes 120 microseconds where compiled code takes 10. On a processor
that does not multiply 16 bits its attention over 1,024 keys takes up to ten times as long in float16, and six times in
bf16, as in float32; widening keys and values first is a seventh of what is left. Both are more exact, and so not equal
to what the model gives without: ``weight_only`` asks for them, and models whose weights are multiplied as they are
packed have them too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...hf.compat import attends_with, sdpa
from ..kernels import operators
from ..kernels.matmul import fast_dtype

NAME = "sdpa-aibit"  # among transformers' ways of attention
sdpa_attention_forward, sdpa_mask = sdpa()


def attend_faster(model: PreTrainedModel) -> None:
    """Switch a model on a CPU to this attention, if it is faster and the model can be switched."""
    if (operators.COMPILED or _widens(model.dtype)) and attends_with(model, "sdpa"):
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, position_bias: torch.Tensor | None = None, cache: Any = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend as transformers' ``sdpa`` does, in float32: query, key and value are [batch, heads, length, size]."""
    dtype = query.dtype
    plain = attention_mask is None and position_bias is None and cache is None and not options.get("dropout")
    if plain and query.shape[2] == 1 and operators.attends(query, key, value):
        scale = options.get("scaling")
        return operators.attend(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale), None
    if cache is None and query.device.type == "cpu" and _widens(dtype):  # a paged cache takes what the model has
        query, key, value = query.float(), key.float(), value.float()
        position_bias = None if position_bias is None else position_bias.float()
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.float()
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, cache=cache, **options
    )
    return output.to(dtype), None


def _widens(dtype: torch.dtype) -> bool:
    return fast_dtype(dtype) != dtype
