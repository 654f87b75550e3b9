"""Describes T5 and UMT5, whole or as encoders alone.

Files do not say which of them they hold: one with a relative bias in every layer is of UMT5, one with gates of T5 1.1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..architecture import Architecture
from ..config_keys import Constant, Derived, Fixed, Number
from .rows import Rows, tensor

_PLAIN, _GATED = {"wi": "ffn_up"}, {"wi_0": "ffn_gate", "wi_1": "ffn_up"}


def _attention(theirs: str, ours: str) -> Rows:
    names = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_o": "o", "attn_rel_b": "relative_attention_bias"}
    return tuple(row for name, inner in names.items() for row in tensor(f"{theirs}{name}", f"{ours}.{inner}"))


def _stack(theirs: str, ours: str, network: int, up: Mapping[str, str]) -> Rows:
    """Return the rows of the encoder or the decoder; ``network`` is the number of the sublayer that feeds forward."""
    start, inner = f"{theirs}.blk.{{}}.", f"{ours}.block.{{}}.layer."
    dense = f"{inner}{network}.DenseReluDense."
    return (
        *_attention(start, f"{inner}0.SelfAttention"), *tensor(f"{start}attn_norm", f"{inner}0.layer_norm"),
        *(row for name, other in up.items() for row in tensor(f"{start}{other}", f"{dense}{name}")),
        *tensor(f"{start}ffn_down", f"{dense}wo"),
        *tensor(f"{start}ffn_norm", f"{inner}{network}.layer_norm"),
        *tensor(f"{theirs}.output_norm", f"{ours}.final_layer_norm"),
    )  # fmt: skip


_EMBEDDINGS = tensor("token_embd", "shared")
_CROSS = (
    *_attention("dec.blk.{}.cross_", "decoder.block.{}.layer.1.EncDecAttention"),
    *tensor("dec.blk.{}.cross_attn_norm", "decoder.block.{}.layer.1.layer_norm"), *tensor("output", "lm_head"),
)  # fmt: skip


def _rows(up: Mapping[str, str]) -> Rows:
    return (*_EMBEDDINGS, *_stack("enc", "encoder", 1, up), *_stack("dec", "decoder", 2, up), *_CROSS)


def _encoder_rows(up: Mapping[str, str]) -> Rows:
    return (*_EMBEDDINGS, *_stack("enc", "encoder", 1, up))


_ENCODER = (
    Number("context_length", "n_positions", otherwise=512), Number("embedding_length", "d_model"),
    Number("feed_forward_length", "d_ff"), Number("block_count", "num_layers"),
    Number("attention.head_count", "num_heads"), Derived("attention.head_count_kv", "num_heads"),
    Number("attention.key_length", "d_kv"), Derived("attention.value_length", "d_kv"),
    Number("attention.layer_norm_rms_epsilon", "layer_norm_epsilon", float), Constant("attention.layer_norm_epsilon"),
    Number("attention.relative_buckets_count", "relative_attention_num_buckets"),
    Fixed("relative_attention_max_distance", 128, None),
)  # fmt: skip
_BOTH = (
    *_ENCODER, Number("decoder_block_count", "num_decoder_layers", otherwise="num_layers"),
    Number("decoder_start_token_id", "decoder_start_token_id", otherwise=0, least=0),
    Fixed("is_encoder_decoder", True, None),
)  # fmt: skip
_RELU, _GELU = Fixed("feed_forward_proj", "relu", None), Fixed("feed_forward_proj", "gated-gelu")
_LAYERS, _ENCODER_LAYERS = ("num_layers", "num_decoder_layers"), ("num_layers",)


def _is_umt5(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return "enc.blk.1.attn_rel_b.weight" in names


def _is_gated(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return "enc.blk.0.ffn_gate.weight" in names


UMT5 = Architecture("t5", "umt5", "UMT5ForConditionalGeneration", _rows(_GATED), (*_BOTH, _GELU), _is_umt5, _LAYERS)
T5_GATED = Architecture("t5", "t5", "T5ForConditionalGeneration", _rows(_GATED), (*_BOTH, _GELU), _is_gated, _LAYERS)
T5 = Architecture("t5", "t5", "T5ForConditionalGeneration", _rows(_PLAIN), (*_BOTH, _RELU), layers=_LAYERS)
UMT5_ENCODER = Architecture(
    "t5encoder", "umt5", "UMT5EncoderModel", _encoder_rows(_GATED), (*_ENCODER, _GELU), _is_umt5, _ENCODER_LAYERS
)
T5_GATED_ENCODER = Architecture(
    "t5encoder", "t5", "T5EncoderModel", _encoder_rows(_GATED), (*_ENCODER, _GELU), _is_gated, _ENCODER_LAYERS
)
T5_ENCODER = Architecture(
    "t5encoder", "t5", "T5EncoderModel", _encoder_rows(_PLAIN), (*_ENCODER, _RELU), layers=_ENCODER_LAYERS
)

ARCHITECTURES = (UMT5, T5_GATED, T5, UMT5_ENCODER, T5_GATED_ENCODER, T5_ENCODER)
