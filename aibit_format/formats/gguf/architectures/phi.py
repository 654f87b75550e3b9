"""Describes Phi-3."""

from __future__ import annotations

from ..architecture import Architecture
from ..config_attention import HeadSize, Rope
from ..config_keys import Number, Optional
from .rows import LLAMA_NORMS, outer, tensor
from .shared import RMS, SILU, SIZES

PHI3 = Architecture(
    "phi3", "phi3", "Phi3ForCausalLM",
    (
        *outer(), *LLAMA_NORMS, *tensor("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
        *tensor("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
        *tensor("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
        *tensor("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
    ),
    (
        *SIZES, RMS, HeadSize(None, written=False), SILU,
        Number(
            "rope.scaling.original_context_length", "original_max_position_embeddings",
            otherwise="max_position_embeddings",
        ),
        Rope(partial=True), Optional("attention.sliding_window", "sliding_window", absent=0),
    ),
)  # fmt: skip

ARCHITECTURES = (PHI3,)
