"""Describes Llama and the models made like it: Mistral, Mixtral, Granite, OLMo 2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..architecture import Architecture
from ..config_attention import HeadSize, Rope, Window
from ..config_keys import Constant, Fixed, Number
from .rows import LLAMA_NORMS, QK_NORMS, attention, experts, mlp, norms, outer
from .shared import NO_BIAS, RMS, SILU, SIZES, USED

_LLAMA = (*SIZES, RMS, HeadSize(), Rope(), SILU, Fixed("pretraining_tp", None, 0, 1))

_SCALES = (
    Number("attention.scale", "attention_multiplier", float), Number("embedding_scale", "embedding_multiplier", float),
    Number("residual_scale", "residual_multiplier", float), Number("logit_scale", "logits_scaling", float),
    Constant("rope.scaling.finetuned", None, True),
)  # fmt: skip


def _has_experts(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return "blk.0.ffn_gate_inp.weight" in names


def _has_none(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return not _has_experts(values, names)


def _never(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return False


LLAMA = Architecture(
    "llama", "llama", "LlamaForCausalLM",
    (*outer(), *LLAMA_NORMS, *attention(True, "attention_bias", "attention_bias"), *mlp("mlp_bias")), _LLAMA,
    _has_none,
)  # fmt: skip
# DeciLM's models with the same heads in every layer. They go out as Llamas.
DECI = replace(LLAMA, gguf="deci")
# A file of a Mistral model becomes a Llama, which computes the same; a Mistral becomes such a file.
MISTRAL = Architecture(
    "llama", "mistral", "MistralForCausalLM", (*outer(), *LLAMA_NORMS, *attention(True), *mlp()),
    (*_LLAMA, Window()), _never,
)  # fmt: skip
MIXTRAL = Architecture(
    "llama", "mixtral", "MixtralForCausalLM", (*outer(), *LLAMA_NORMS, *attention(True), *experts()),
    (*_LLAMA, Window(), Number("expert_count", "num_local_experts"), USED), _has_experts,
)  # fmt: skip

GRANITE = Architecture(
    "granite", "granite", "GraniteForCausalLM",
    (*outer(), *LLAMA_NORMS, *attention(True, "attention_bias", "attention_bias"), *mlp("mlp_bias")),
    (*SIZES, RMS, HeadSize(None, written=False), Rope(), SILU, *_SCALES),
)  # fmt: skip
GRANITE_MOE = Architecture(
    "granitemoe", "granitemoe", "GraniteMoeForCausalLM",
    (
        *outer(), *LLAMA_NORMS, *attention(True, "attention_bias", "attention_bias"),
        *experts("block_sparse_moe", "router"),
    ),
    (
        *SIZES, RMS, HeadSize(None, written=False), Rope(), SILU, *_SCALES,
        Number("expert_count", "num_local_experts"), USED,
    ),
)  # fmt: skip
OLMO2 = Architecture(
    "olmo2", "olmo2", "Olmo2ForCausalLM",
    (
        *outer(), *QK_NORMS, *attention(), *mlp(),
        *norms(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm"),
    ),
    (*SIZES, RMS, HeadSize(None, written=False), Rope(), SILU, NO_BIAS),
)  # fmt: skip

ARCHITECTURES = (LLAMA, DECI, MISTRAL, MIXTRAL, GRANITE, GRANITE_MOE, OLMO2)
