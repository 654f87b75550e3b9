"""Describes gpt-oss."""

from __future__ import annotations

from ..architecture import Architecture, Row
from ..config_attention import HeadSize, LayerTypes, Rope
from ..config_keys import Fixed, Number
from ..operations import TURNED, Interleaved
from .rows import attention, norms, outer, tensor
from .shared import RMS, SILU, SIZES, USED

GPT_OSS = Architecture(
    "gpt-oss", "gpt_oss", "GptOssForCausalLM",
    (
        *outer(), *norms(attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
        *attention(qkv="", out=""), *tensor("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router", bias=""),
        Row("model.layers.{}.self_attn.sinks", ("blk.{}.attn_sinks.weight",)),
        Row(
            "model.layers.{}.mlp.experts.gate_up_proj", ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"),
            Interleaved(axis=-2, turned=True),
        ),
        Row(
            "model.layers.{}.mlp.experts.gate_up_proj_bias", ("blk.{}.ffn_gate_exps.bias", "blk.{}.ffn_up_exps.bias"),
            Interleaved(axis=-1),
        ),
        Row("model.layers.{}.mlp.experts.down_proj", ("blk.{}.ffn_down_exps.weight",), TURNED),
        Row("model.layers.{}.mlp.experts.down_proj_bias", ("blk.{}.ffn_down_exps.bias",)),
    ),
    (
        *SIZES, RMS, HeadSize(), Rope(extra=(("truncate", False),)), SILU, LayerTypes(2),
        Number("expert_count", "num_local_experts", also="num_experts"), USED,
        Number("expert_feed_forward_length", "intermediate_size", otherwise="intermediate_size"),
        Number("attention.sliding_window", "sliding_window"), Fixed("attention_bias", True, None),
        Fixed("swiglu_limit", 7.0, None), Fixed("swiglu_alpha", 1.702, None),
    ),
)  # fmt: skip

ARCHITECTURES = (GPT_OSS,)
