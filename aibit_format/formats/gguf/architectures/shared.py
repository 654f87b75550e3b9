"""Lists the entries of configs that architectures share."""

from __future__ import annotations

from ..config_keys import Constant, Fixed, Number

LAYERS = Number("block_count", "num_hidden_layers")
OUTLINE = (
    Number("context_length", "max_position_embeddings"), Number("embedding_length", "hidden_size"), LAYERS,
    Number("attention.head_count", "num_attention_heads"),
)  # fmt: skip
WIDTH = Number("feed_forward_length", "intermediate_size")
KEY_HEADS = Number("attention.head_count_kv", "num_key_value_heads", otherwise="num_attention_heads")
SIZES = (*OUTLINE, WIDTH, KEY_HEADS)
RMS = Number("attention.layer_norm_rms_epsilon", "rms_norm_eps", float)
SILU = Fixed("hidden_act", "silu", None)
EXPERTS = Number("expert_count", "num_experts", also="num_local_experts")
USED = Number("expert_used_count", "num_experts_per_tok")
EXPERT_SIZE = Number("expert_feed_forward_length", "moe_intermediate_size")
EVERY_LAYER = (Fixed("decoder_sparse_step", 1, None), Fixed("mlp_only_layers", [], None))
NO_BIAS = Fixed("attention_bias", False, None)
SIGMOID = Constant("expert_gating_func", 2)  # of what a router makes of a token, not the softmax
