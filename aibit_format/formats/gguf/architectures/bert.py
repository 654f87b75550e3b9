"""Describes BERT and DistilBERT, as encoders. llama.cpp has no pooler of BERT's, so files have no weights for it.

RoBERTa's files, whose positions begin at the first that is used, are those of a BERT.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..architecture import Architecture
from ..config_keys import About, Config, Constant, Derived, Entry, Fixed, Number, Written
from ..keys import Keys
from .rows import Rows, tensor
from .shared import OUTLINE, WIDTH


class TypeCount(Entry):
    """Say how many types of texts there are, which a file has rows of embeddings for."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["type_vocab_size"] = about.shapes[_TYPES][0]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[_TYPE_COUNT] = config.get("type_vocab_size", 2)


def _rows(embeddings: str, layer: str, names: Mapping[str, str]) -> Rows:
    outer = {"token_embd": "word_embeddings", "position_embd": "position_embeddings"}
    return (
        *(row for theirs, ours in outer.items() for row in tensor(theirs, f"{embeddings}.{ours}")),
        *tensor("token_embd_norm", f"{embeddings}.LayerNorm", bias=""),
        *(row for theirs, ours in names.items() for row in tensor(f"blk.{{}}.{theirs}", f"{layer}.{ours}", bias="")),
    )


def _has_types(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return _TYPES in names


_TYPES, _TYPE_COUNT = "token_types.weight", "tokenizer.ggml.token_type_count"
BERT = Architecture(
    "bert", "bert", "BertModel",
    (
        *_rows("embeddings", "encoder.layer.{}", {
            "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm",
        }),
        *tensor("token_types", "embeddings.token_type_embeddings"),
    ),
    (
        *OUTLINE, WIDTH, Derived("attention.head_count_kv", "num_attention_heads"), TypeCount(),
        Number("attention.layer_norm_epsilon", "layer_norm_eps", float), Constant("attention.causal", False),
        Fixed("hidden_act", "gelu", None), Fixed("is_decoder", False, None),
        Fixed("position_embedding_type", None, "absolute"), Fixed("add_cross_attention", False, None),
    ),
    _has_types, left_out=("pooler.dense.weight", "pooler.dense.bias"),
)  # fmt: skip
DISTILBERT = Architecture(
    "bert", "distilbert", "DistilBertModel",
    _rows("embeddings", "transformer.layer.{}", {
        "attn_q": "attention.q_lin", "attn_k": "attention.k_lin", "attn_v": "attention.v_lin",
        "attn_output": "attention.out_lin", "attn_output_norm": "sa_layer_norm", "ffn_up": "ffn.lin1",
        "ffn_down": "ffn.lin2", "layer_output_norm": "output_layer_norm",
    }),
    (
        Number("context_length", "max_position_embeddings"), Number("embedding_length", "dim"),
        Number("block_count", "n_layers"), Number("feed_forward_length", "hidden_dim"),
        Number("attention.head_count", "n_heads"), Derived("attention.head_count_kv", "n_heads"),
        Constant("attention.layer_norm_epsilon", 1e-12), Constant("attention.causal", False),
        Written(_TYPE_COUNT, 1), Fixed("activation", "gelu", None), Fixed("sinusoidal_pos_embds", False, None),
    ),
    layers=("n_layers",),
)  # fmt: skip

ARCHITECTURES = (BERT, DISTILBERT)
