"""Describes Mamba and LFM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import SourceError
from ..architecture import Architecture, Row
from ..config_attention import FULL, HeadSize, Rope
from ..config_keys import About, Config, Constant, Derived, Entry, Fixed, Number, Written
from ..keys import Keys, brief
from ..operations import NEGATED_EXPONENTIAL, SAME, Operation, Squeezed
from .rows import Rows, outer, tensor
from .shared import LAYERS


def _mixer(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    return tensor(f"blk.{{}}.{theirs}", f"backbone.layers.{{}}.{ours}", operation, bias)


MAMBA = Architecture(
    "mamba", "mamba", "MambaForCausalLM",
    (
        *outer("backbone.embeddings", "backbone.norm_f"), *_mixer("attn_norm", "norm"),
        *_mixer("ssm_in", "mixer.in_proj"), *_mixer("ssm_out", "mixer.out_proj"), *_mixer("ssm_x", "mixer.x_proj"),
        *_mixer("ssm_dt", "mixer.dt_proj", bias=""), *_mixer("ssm_conv1d", "mixer.conv1d", Squeezed(1)),
        Row("backbone.layers.{}.mixer.conv1d.bias", ("blk.{}.ssm_conv1d.bias",), flag="use_conv_bias"),
        Row("backbone.layers.{}.mixer.A_log", ("blk.{}.ssm_a",), NEGATED_EXPONENTIAL),
        Row("backbone.layers.{}.mixer.D", ("blk.{}.ssm_d",)),
    ),
    (
        Number("embedding_length", "hidden_size"), LAYERS, Number("ssm.conv_kernel", "conv_kernel"),
        Number("ssm.state_size", "state_size"), Number("ssm.time_step_rank", "time_step_rank"), Fixed("expand", 2),
        Derived("ssm.inner_size", "hidden_size", 2), Constant("ssm.dt_b_c_rms", False, None),
        Number("attention.layer_norm_rms_epsilon", "layer_norm_epsilon", float), Written("context_length", 1 << 20),
        Written("feed_forward_length", 0), Written("attention.head_count", 0), Fixed("use_bias", False, None),
        Fixed("hidden_act", "silu", None),
    ),
)  # fmt: skip


class ConvolutionLayers(Entry):
    """Say which layers of LFM2 are convolutions: those for which a file has no heads of keys and values."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        counts = keys.each("attention.head_count_kv", config["num_hidden_layers"])
        if {*counts} - {0} != {max(counts)} or type(counts[0]) is not int:
            raise keys.wrong(
                "attention.head_count_kv", keys.get("attention.head_count_kv"), "0 or one number is needed"
            )
        config["num_key_value_heads"] = max(counts)
        config["layer_types"] = [FULL if count else "conv" for count in counts]

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        heads, types = config["num_key_value_heads"], config.get("layer_types")
        if not types or len(types) != config["num_hidden_layers"] or {*types} - {"conv", FULL}:
            raise SourceError(f"config.json: layer_types is {brief(types)}, conv or {FULL} is needed for each layer")
        values["attention.head_count_kv"] = [heads if kind == FULL else 0 for kind in types]


class AdjustedWidth(Entry):
    """Say how wide the layers of LFM2 are inside, which a config may leave to be computed from another width."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        config["intermediate_size"] = keys.integer("feed_forward_length")
        config["block_auto_adjust_ff_dim"] = False

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        width = config.get("block_ff_dim") or config["intermediate_size"]
        if config.get("block_auto_adjust_ff_dim", True):
            width = int(config.get("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
            multiple = config.get("block_multiple_of", 256)
            width = -(-width // multiple) * multiple
        values["feed_forward_length"] = width


def _lfm2(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    return tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.{ours}", operation, bias)


LFM2 = Architecture(
    "lfm2", "lfm2", "Lfm2ForCausalLM",
    (
        *tensor("token_embd", "model.embed_tokens"), *tensor("token_embd_norm", "model.embedding_norm"),
        *tensor("output", "lm_head"), *_lfm2("attn_norm", "operator_norm"), *_lfm2("ffn_norm", "ffn_norm"),
        *_lfm2("attn_q", "self_attn.q_proj"), *_lfm2("attn_k", "self_attn.k_proj"),
        *_lfm2("attn_v", "self_attn.v_proj"), *_lfm2("attn_output", "self_attn.out_proj"),
        *_lfm2("attn_q_norm", "self_attn.q_layernorm"), *_lfm2("attn_k_norm", "self_attn.k_layernorm"),
        *_lfm2("ffn_gate", "feed_forward.w1"), *_lfm2("ffn_up", "feed_forward.w3"),
        *_lfm2("ffn_down", "feed_forward.w2"), *_lfm2("shortconv.conv", "conv.conv", Squeezed(1)),
        *_lfm2("shortconv.in_proj", "conv.in_proj"), *_lfm2("shortconv.out_proj", "conv.out_proj"),
    ),
    (
        Number("context_length", "max_position_embeddings"), Number("embedding_length", "hidden_size"), LAYERS,
        AdjustedWidth(), Number("attention.head_count", "num_attention_heads"), ConvolutionLayers(),
        Number("attention.layer_norm_rms_epsilon", "norm_eps", float), Number("shortconv.l_cache", "conv_L_cache"),
        HeadSize(None, written=False), Rope(), Fixed("conv_bias", False, None),
    ),
)  # fmt: skip

ARCHITECTURES = (MAMBA, LFM2)
