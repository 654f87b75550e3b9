"""Describes the Gemma models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....errors import SourceError
from .. import rope
from ..architecture import Architecture
from ..config_attention import FULL, SLIDING, HeadSize, LayerTypes, Rope
from ..config_keys import About, Config, Entry, Fixed, Number, Optional
from ..keys import Keys, brief
from .rows import attention, mlp, norms, outer
from .shared import NO_BIAS, RMS, SIZES


@dataclass(frozen=True)
class QueryScale(Entry):
    """Say by what Gemma scales queries: the size of a head, or in a model of ``wide`` layers the width by heads."""

    wide: int

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["query_pre_attn_scalar"] = self._scale(config)

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        if config.get("query_pre_attn_scalar") not in (None, self._scale(config)):
            raise SourceError(
                f"config.json: query_pre_attn_scalar {brief(config['query_pre_attn_scalar'])}, llama.cpp computes with "
                f"{self._scale(config)}"
            )

    def _scale(self, config: Mapping[str, Any]) -> int:
        if config["num_hidden_layers"] == self.wide:
            return config["hidden_size"] // config["num_attention_heads"]
        return rope.head_dim_of(config)


class TwoRopes(Entry):
    """Say how positions rotate in Gemma 3: in full layers, which may be scaled, and in those with a sliding window."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        values, size = keys.rope(), rope.head_dim_of(config)
        local = keys.number("rope.freq_base_swa", rope.DEFAULT_THETA)
        if keys.integer("rope.dimension_count", size) != size:
            raise keys.wrong("rope.dimension_count", values["dimension_count"], f"the heads have {size} dimensions")
        values.setdefault("freq_base", 1e6)
        config["rope_parameters"] = {
            FULL: rope.from_gguf(values, about.factors, config["max_position_embeddings"]),
            SLIDING: {"rope_type": "default", "rope_theta": local},
        }

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        both = config.get("rope_parameters") or {}
        full = both.get(FULL) or {
            "rope_theta": config.get("rope_theta") or 1e6, **(config.get("rope_scaling") or {}),
        }  # fmt: skip
        local = both.get(SLIDING) or {"rope_theta": config.get("rope_local_base_freq") or 1e4}
        if rope.parameters_of({"rope_parameters": local})["rope_type"] != "default":
            raise SourceError("config.json: rope_parameters: llama.cpp scales no layers with a sliding window")
        written = rope.to_gguf(rope.parameters_of({"rope_parameters": full}), config)
        values |= {f"rope.{key}": value for key, value in written.items()}
        values["rope.freq_base_swa"] = float(local["rope_theta"])


_GEMMA_NORMS = norms(
    shift=True, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm", post_ffw_norm="post_feedforward_layernorm",
)  # fmt: skip
_GELU = Fixed("hidden_activation", "gelu_pytorch_tanh", None)
_CAUSAL = Fixed("use_bidirectional_attention", None, False)

GEMMA = Architecture(
    "gemma", "gemma", "GemmaForCausalLM",
    (
        *outer(shift=True), *norms(shift=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *attention(), *mlp(),
    ),
    (*SIZES, RMS, HeadSize(), Rope(), NO_BIAS, Fixed("hidden_act", "gelu_pytorch_tanh", "gelu", None), _GELU),
)  # fmt: skip
GEMMA2 = Architecture(
    "gemma2", "gemma2", "Gemma2ForCausalLM", (*outer(shift=True), *_GEMMA_NORMS, *attention(), *mlp()),
    (
        *SIZES, RMS, HeadSize(), Rope(), QueryScale(46), LayerTypes(2), _GELU, _CAUSAL, NO_BIAS,
        Number("attention.sliding_window", "sliding_window", otherwise=4096),
        Number("attn_logit_softcapping", "attn_logit_softcapping", float, otherwise=50.0),
        Number("final_logit_softcapping", "final_logit_softcapping", float, otherwise=30.0),
    ),
)  # fmt: skip
GEMMA3 = Architecture(
    "gemma3", "gemma3_text", "Gemma3ForCausalLM",
    (
        *outer(shift=True), *_GEMMA_NORMS, *attention(), *mlp(),
        *norms(shift=True, attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm"),
    ),
    (
        *SIZES, RMS, HeadSize(), TwoRopes(), QueryScale(62), LayerTypes(6), _GELU, _CAUSAL, NO_BIAS,
        Number("attention.sliding_window", "sliding_window"), Fixed("attn_logit_softcapping", None),
        Optional("final_logit_softcapping", "final_logit_softcapping", float, absent=0.0),
    ),
)  # fmt: skip

ARCHITECTURES = (GEMMA, GEMMA2, GEMMA3)
