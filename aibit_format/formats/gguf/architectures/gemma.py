"""Describes the Gemma models."""

from __future__ import annotations

from ..architecture import Architecture
from ..config_keys import Fixed, HeadSize, LayerTypes, Number, Optional, QueryScale, Rope, TwoRopes
from .rows import attention, mlp, norms, outer
from .shared import NO_BIAS, RMS, SIZES

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
