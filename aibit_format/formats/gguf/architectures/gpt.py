"""Describes GPT-2, BLOOM and Falcon."""

from __future__ import annotations

from ..architecture import Architecture
from ..config_attention import HeadSize, Rope
from ..config_keys import Constant, Derived, Fixed, Number
from ..operations import SAME, TURNED, Operation, Permuted, by_groups, by_heads
from .rows import Rows, outer, tensor
from .shared import LAYERS


def _block(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = "") -> Rows:
    return tensor(f"blk.{{}}.{theirs}", f"transformer.h.{{}}.{ours}", operation, bias)


GPT2 = Architecture(
    "gpt2", "gpt2", "GPT2LMHeadModel",
    (
        *outer("transformer.wte", "transformer.ln_f", bias=""), *tensor("position_embd", "transformer.wpe"),
        *_block("attn_norm", "ln_1"), *_block("ffn_norm", "ln_2"), *_block("attn_qkv", "attn.c_attn", TURNED),
        *_block("attn_output", "attn.c_proj", TURNED), *_block("ffn_up", "mlp.c_fc", TURNED),
        *_block("ffn_down", "mlp.c_proj", TURNED),
    ),
    (
        Number("context_length", "n_positions"), Number("embedding_length", "n_embd"), Number("block_count", "n_layer"),
        Number("feed_forward_length", "n_inner", otherwise="n_embd", times=4),
        Number("attention.head_count", "n_head"), Constant("attention.head_count_kv"),
        Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float), Constant("rope.dimension_count"),
        Fixed("activation_function", "gelu_new", "gelu_pytorch_tanh", None), Fixed("scale_attn_weights", True, None),
        Fixed("scale_attn_by_inverse_layer_idx", False, None), Fixed("add_cross_attention", False, None),
    ),
    layers=("n_layer",),
)  # fmt: skip
BLOOM = Architecture(
    "bloom", "bloom", "BloomForCausalLM",
    (
        *outer("transformer.word_embeddings", "transformer.ln_f", bias=""),
        *tensor("token_embd_norm", "transformer.word_embeddings_layernorm", bias=""),
        *_block("attn_norm", "input_layernorm"), *_block("ffn_norm", "post_attention_layernorm"),
        *_block("attn_qkv", "self_attention.query_key_value", Permuted(by_heads)),
        *_block("attn_output", "self_attention.dense"), *_block("ffn_up", "mlp.dense_h_to_4h"),
        *_block("ffn_down", "mlp.dense_4h_to_h"),
    ),
    (
        Number("embedding_length", "hidden_size"), Number("block_count", "n_layer"),
        Number("attention.head_count", "n_head"), Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float),
        Number("context_length", "seq_length", otherwise="hidden_size"), Derived("attention.head_count_kv", "n_head"),
        Derived("feed_forward_length", "hidden_size", 4), Fixed("slow_but_exact", False, None, True),
        Fixed("apply_residual_connection_post_layernorm", False, None), Fixed("pretraining_tp", None, 0, 1),
    ),
    layers=("n_layer",),
)  # fmt: skip

_FALCON_ROWS = (
    *outer("transformer.word_embeddings", "transformer.ln_f", bias=""),
    *_block("attn_qkv", "self_attention.query_key_value", Permuted(by_groups), "bias"),
    *_block("attn_output", "self_attention.dense", bias="bias"), *_block("ffn_up", "mlp.dense_h_to_4h", bias="bias"),
    *_block("ffn_down", "mlp.dense_4h_to_h", bias="bias"),
)  # fmt: skip
_FALCON = (
    Number("context_length", "max_position_embeddings", otherwise=2048), Number("embedding_length", "hidden_size"),
    LAYERS, Number("attention.head_count", "num_attention_heads"),
    Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float), HeadSize(None, written=False),
    Number("feed_forward_length", "ffn_hidden_size", otherwise="hidden_size", times=4), Rope(),
    Fixed("alibi", False, None), Fixed("parallel_attn", True, None), Fixed("activation", "gelu", None),
)  # fmt: skip
_ONE_NORM = _block("attn_norm", "input_layernorm")
# Falcon 40B: a norm for attention and one for the rest. Falcon 2: one norm. Falcon 7B: one key and value for all.
FALCON_TWO_NORMS = Architecture(
    "falcon", "falcon", "FalconForCausalLM",
    (*_FALCON_ROWS, *_block("attn_norm", "ln_mlp"), *_block("attn_norm_2", "ln_attn")),
    (
        Number("attention.head_count_kv", "num_kv_heads"), *_FALCON, Fixed("new_decoder_architecture", True),
        Fixed("num_ln_in_parallel_attn", 2, None), Fixed("multi_query", True, False, None),
    ),
    lambda values, names: "blk.0.attn_norm_2.weight" in names,
)  # fmt: skip
FALCON_ONE_NORM = Architecture(
    "falcon", "falcon", "FalconForCausalLM", (*_FALCON_ROWS, *_ONE_NORM),
    (
        Number("attention.head_count_kv", "num_kv_heads"), *_FALCON, Fixed("new_decoder_architecture", True),
        Fixed("num_ln_in_parallel_attn", 1), Fixed("multi_query", True, False, None),
    ),
    lambda values, names: str(values.get("falcon.attention.head_count_kv", 1)) != "1",
)  # fmt: skip
FALCON_ONE_KEY = Architecture(
    "falcon", "falcon", "FalconForCausalLM", (*_FALCON_ROWS, *_ONE_NORM),
    (
        Constant("attention.head_count_kv", 1, None), *_FALCON, Fixed("new_decoder_architecture", False, None),
        Fixed("multi_query", True, None), Fixed("num_ln_in_parallel_attn", None, 1),
    ),
)  # fmt: skip

ARCHITECTURES = (GPT2, BLOOM, FALCON_TWO_NORMS, FALCON_ONE_NORM, FALCON_ONE_KEY)
