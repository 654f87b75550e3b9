"""Describes models of today with layer norms: StarCoder2, StableLM, Nemotron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..config_attention import HeadSize, Rope, Window
from ..config_keys import About, Config, Constant, Entry, Fixed, Number
from ..keys import Keys
from .rows import attention, mlp, norms, outer
from .shared import SILU, SIZES


@dataclass(frozen=True)
class WithoutTensor(Entry):
    """Say that a flag of a config is set where a tensor is missing; ``key`` is GGUF's for the same."""

    config: str
    tensor: str
    key: str

    def read(self, keys: Keys, config: Config, about: About) -> None:
        keys.get(self.key)  # converters have written it the wrong way round; llama.cpp looks for the tensor
        config[self.config] = self.tensor not in about.shapes

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values[self.key] = bool(config.get(self.config))


STARCODER2 = Architecture(
    "starcoder2", "starcoder2", "Starcoder2ForCausalLM",
    (
        *outer(bias=""), *attention(qkv="use_bias", out="use_bias"),
        *norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *mlp("use_bias", False, "mlp.c_fc", "mlp.c_proj"),
    ),
    (
        *SIZES, Number("attention.layer_norm_epsilon", "norm_epsilon", float), HeadSize(None, written=False), Rope(),
        Window(), Fixed("hidden_act", "gelu_pytorch_tanh", None),
    ),
)  # fmt: skip
STABLELM = Architecture(
    "stablelm", "stablelm", "StableLmForCausalLM",
    (
        *outer(bias=""), *attention(qkv="use_qkv_bias"), *mlp(),
        *norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
    ),
    (
        *SIZES, Number("attention.layer_norm_epsilon", "layer_norm_eps", float), HeadSize(None, written=False),
        Rope(partial=True), SILU, Fixed("qk_layernorm", False, None),
        WithoutTensor("use_parallel_residual", "blk.0.ffn_norm.weight", "use_parallel_residual"),
    ),
)  # fmt: skip
NEMOTRON = Architecture(
    "nemotron", "nemotron", "NemotronForCausalLM",
    (
        *outer(shift=True, bias=""), *attention(qkv="attention_bias", out="attention_bias"),
        *norms(shift=True, bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *mlp("mlp_bias", gate=False),
    ),
    (
        *SIZES, Number("attention.layer_norm_epsilon", "norm_eps", float), HeadSize(), Rope(partial=True),
        Constant("attention.layer_norm_rms_epsilon"), Fixed("hidden_act", "relu2", None),
    ),
)  # fmt: skip

ARCHITECTURES = (STARCODER2, STABLELM, NEMOTRON)
