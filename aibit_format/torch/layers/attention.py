"""Computes attention in float32 in 16-bit models, for processors that multiply 16-bit numbers slowly.

On a processor without AVX512-BF16 torch's attention over 1,024 keys takes ten times as long in float16, and six times
in bf16, as in float32; widening keys and values first is a seventh of what is left. It is also more exact, and so not
equal to what the model gives without it: ``weight_only`` asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...hf.compat import attends_with, sdpa
from ..kernels.matmul import BF16

NAME = "sdpa-float32"  # among transformers' ways of attention
sdpa_attention_forward, sdpa_mask = sdpa()


def in_float32(model: PreTrainedModel) -> None:
    """Switch a model on a CPU to attention in float32, where that is faster and the model can be switched."""
    short = model.dtype in (torch.float16, torch.bfloat16)
    if BF16 or not short or not attends_with(model, "sdpa"):
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, position_bias: torch.Tensor | None = None, cache: Any = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend as transformers' ``sdpa`` does, in float32: query, key and value are [batch, heads, length, size]."""
    dtype = query.dtype
    if cache is None and query.device.type == "cpu":  # a paged cache takes keys and values as the model has them
        query, key, value = query.float(), key.float(), value.float()
        position_bias = None if position_bias is None else position_bias.float()
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.float()
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, cache=cache, **options
    )
    return output.to(dtype), None
