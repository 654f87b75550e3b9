"""Describes the Qwen models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import SourceError
from ..architecture import Architecture, Row
from ..config_attention import FULL, HeadSize, Rope
from ..config_keys import About, Config, Constant, EachHead, Entry, Fixed, Number
from ..keys import Keys
from ..operations import (
    NEGATED_EXPONENTIAL,
    SAME,
    Columns,
    Operation,
    Permuted,
    RowVector,
    Squeezed,
    Then,
    by_key_heads,
)
from ..rope import parameters_of
from .rows import LLAMA_NORMS, QK_NORMS, Rows, attention, experts, mlp, norms, outer, shared_experts, tensor
from .shared import EVERY_LAYER, EXPERT_SIZE, EXPERTS, KEY_HEADS, NO_BIAS, OUTLINE, RMS, SILU, SIZES, USED, WIDTH

_QWEN2 = (*SIZES, RMS, HeadSize(None, written=False), Rope(), SILU, Fixed("use_sliding_window", False, None))
_QWEN3 = (*SIZES, RMS, HeadSize(), Rope(), SILU, Fixed("use_sliding_window", False, None))

QWEN2 = Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", (*outer(), *LLAMA_NORMS, *attention(qkv=""), *mlp()), _QWEN2)
QWEN3 = Architecture(
    "qwen3", "qwen3", "Qwen3ForCausalLM",
    (*outer(), *LLAMA_NORMS, *QK_NORMS, *attention(qkv="attention_bias", out="attention_bias"), *mlp()), _QWEN3,
)  # fmt: skip
_SHARED = (
    *shared_experts("shared_expert"),
    *tensor("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate", RowVector()),
)
_SHARED_SIZE = Number("expert_shared_feed_forward_length", "shared_expert_intermediate_size")
QWEN2_MOE = Architecture(
    "qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM",
    (
        *outer(), *LLAMA_NORMS, *attention(qkv=""), *experts(), *_SHARED,
    ),
    (
        *_QWEN2, EXPERTS, USED, EXPERT_SIZE,
        _SHARED_SIZE,
        Fixed("norm_topk_prob", False, None), Fixed("qkv_bias", True, None), *EVERY_LAYER,
    ),
)  # fmt: skip
QWEN3_MOE = Architecture(
    "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM",
    (
        *outer(), *LLAMA_NORMS, *QK_NORMS, *attention(qkv="attention_bias", out="attention_bias"), *experts(),
    ),
    (
        *_QWEN3, EXPERTS, USED, EXPERT_SIZE,
        Fixed("norm_topk_prob", True), *EVERY_LAYER,
    ),
)  # fmt: skip


class LinearLayers(Entry):
    """Say which layers of Qwen3.5 attend to everything: every so many-th. A file lists the others as well."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        layers = config["num_hidden_layers"]
        interval = keys.integer("full_attention_interval", 4)
        linear = [(i + 1) % interval != 0 for i in range(layers)]
        if keys.get("attention.recurrent_layers") is not None:
            linear = keys.each("attention.recurrent_layers", layers)
        config["layer_types"] = ["linear_attention" if each else FULL for each in linear]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        types, layers = config.get("layer_types"), config["num_hidden_layers"]
        interval = config.get("full_attention_interval") or 4
        types = types or [FULL if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)]
        values["attention.recurrent_layers"] = [kind != FULL for kind in types]
        values["full_attention_interval"] = types.index(FULL) + 1 if FULL in types else interval


class SectionedRope(Rope):
    """Say how positions of three axes rotate, each its section of the dimensions, which take turns."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        sections = keys.each("rope.dimension_sections", 4)
        super().read(keys, config, about)
        config["rope_parameters"] |= {"mrope_section": sections[:3], "mrope_interleaved": True}

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        parameters = dict(parameters_of(config))
        sections = parameters.pop("mrope_section", None) or [11, 11, 10]
        if not parameters.pop("mrope_interleaved", True):
            raise SourceError("config.json: rope_parameters: mrope_interleaved is to be true, as llama.cpp computes")
        super().write({**config, "rope_parameters": parameters}, values)
        values["rope.dimension_sections"] = [*sections, 0]


def _linear(theirs: str, ours: str, operation: Operation = SAME) -> Rows:
    return tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.linear_attn.{ours}", operation)


_VALUE_HEADS = Permuted(by_key_heads())
_GATED_DELTA = (
    *outer(shift=True), *attention(),
    *norms(
        shift=True, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
        attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm",
    ),
    *_linear("attn_qkv", "in_proj_qkv", Permuted(by_key_heads("linear_value_head_dim", after_keys=True))),
    *_linear("attn_gate", "in_proj_z", Permuted(by_key_heads("linear_value_head_dim"))),
    *_linear("ssm_alpha", "in_proj_a", _VALUE_HEADS), *_linear("ssm_beta", "in_proj_b", _VALUE_HEADS),
    *_linear("ssm_conv1d", "conv1d",
             Then(Permuted(by_key_heads("linear_value_head_dim", after_keys=True)), Squeezed(1))),
    *_linear("ssm_norm", "norm"),
    *_linear("ssm_out", "out_proj", Columns(by_key_heads(), lambda config: config["linear_num_value_heads"])),
    Row("model.layers.{}.linear_attn.A_log", ("blk.{}.ssm_a",), Then(_VALUE_HEADS, NEGATED_EXPONENTIAL)),
    Row("model.layers.{}.linear_attn.dt_bias", ("blk.{}.ssm_dt.bias",), _VALUE_HEADS),
)  # fmt: skip
_QWEN35 = (
    *OUTLINE, KEY_HEADS, RMS, HeadSize(), SectionedRope(partial=True), LinearLayers(), SILU, NO_BIAS,
    Number("ssm.conv_kernel", "linear_conv_kernel_dim"), Number("ssm.state_size", "linear_key_head_dim"),
    Number("ssm.group_count", "linear_num_key_heads"), Number("ssm.time_step_rank", "linear_num_value_heads"),
    EachHead("ssm.inner_size", "linear_value_head_dim", "linear_num_value_heads"),
)  # fmt: skip
QWEN35 = Architecture("qwen35", "qwen3_5_text", "Qwen3_5ForCausalLM", (*_GATED_DELTA, *mlp()), (WIDTH, *_QWEN35))
QWEN35_MOE = Architecture(
    "qwen35moe", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", (*_GATED_DELTA, *experts(), *_SHARED),
    (*_QWEN35, Constant("feed_forward_length"), EXPERTS, USED, EXPERT_SIZE, _SHARED_SIZE),
)  # fmt: skip

ARCHITECTURES = (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, QWEN35, QWEN35_MOE)
