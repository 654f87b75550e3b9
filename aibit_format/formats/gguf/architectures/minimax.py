"""Describes MiniMax M2."""

from __future__ import annotations

from ..architecture import Architecture, Row
from ..config_attention import HeadSize, Rope
from ..config_keys import Number
from .rows import LLAMA_NORMS, QK_NORMS, attention, experts, outer
from .shared import RMS, SIGMOID, SILU, SIZES, USED

MINIMAX_M2 = Architecture(
    "minimax-m2", "minimax_m2", "MiniMaxM2ForCausalLM",
    (
        *outer(), *LLAMA_NORMS, *QK_NORMS, *attention(), *experts(),
        Row("model.layers.{}.mlp.e_score_correction_bias", ("blk.{}.exp_probs_b.bias",)),
    ),
    (
        *SIZES, RMS, HeadSize(), Rope(partial=True), SILU, SIGMOID, Number("expert_count", "num_local_experts"), USED,
        Number("expert_feed_forward_length", "intermediate_size", otherwise="intermediate_size"),
    ),
)  # fmt: skip

ARCHITECTURES = (MINIMAX_M2,)
