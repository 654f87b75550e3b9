"""Describes Gemma 4: layers of two kinds, each with its own heads, inputs for each layer, shared keys, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....errors import SourceError
from ..architecture import Architecture, Row
from ..config_keys import About, Config, Entry, Fixed, Number, Optional
from ..keys import Keys
from ..rope import FREQUENCIES
from .rows import QK_NORMS, Rows, attention, mlp, norms, outer, stacks, tensor
from .shared import EXPERT_SIZE, NO_BIAS, OUTLINE, RMS

_SLIDING, _FULL = "sliding_attention", "full_attention"
_PER_LAYER = "per_layer_token_embd.weight"


def _of_full_layers(config: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    """Return what layers that attend to everything have instead of the others, in any form that configs say it in."""
    for i, own in (config.get("per_layer_config") or {}).items():
        if config["layer_types"][int(i)] == _FULL and key in own:
            return own[key]
    named = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}[key]
    return otherwise if config.get(named) is None else config[named]


class LayersOfTwoKinds(Entry):
    """Say which layers have a sliding window, the heads of both kinds, and which share keys and values."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        layers = config["num_hidden_layers"]
        kinds = [_SLIDING if each else _FULL for each in keys.each("attention.sliding_window_pattern", layers)]
        counts = dict(zip(kinds, keys.each("attention.head_count_kv", layers), strict=True))
        size, local = keys.integer("attention.key_length"), keys.integer("attention.key_length_swa")
        own = [i for i in range(layers) if kinds[i] == _FULL and f"blk.{i}.attn_k.weight" in about.shapes]
        config |= {
            "layer_types": kinds, "head_dim": local, "global_head_dim": size,
            "num_key_value_heads": counts.get(_SLIDING, counts[kinds[-1]]),
            "num_kv_shared_layers": keys.integer("attention.shared_kv_layers", 0, least=0),
            "hidden_size_per_layer_input": keys.integer("embedding_length_per_layer_input", 0, least=0),
            "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in about.shapes for i in own),
            "vocab_size_per_layer_input": about.shapes.get(_PER_LAYER, about.shapes["token_embd.weight"])[0],
        }  # fmt: skip
        if counts.get(_FULL) != config["num_key_value_heads"]:
            config["num_global_key_value_heads"] = counts.get(_FULL)
        widths = keys.each("feed_forward_length", layers)
        config |= {"intermediate_size": widths[0], "use_double_wide_mlp": widths[-1] == 2 * widths[0]}
        for key, value in self._written(config).items():
            found = keys.get(key, value)
            found = found.tolist() if isinstance(found, np.ndarray) else found
            if found != value and found != [value] * layers and value != [found] * layers:
                raise keys.wrong(key, keys.get(key), "other layers are expected")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        values |= self._written(config)

    def _written(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kinds, layers = config["layer_types"], config["num_hidden_layers"]
        size, heads = _of_full_layers(config, "head_dim", 512), config["num_key_value_heads"]
        wide, shared = config["intermediate_size"], config.get("num_kv_shared_layers") or 0
        if not isinstance(kinds, list) or len(kinds) != layers or kinds[-1] != _FULL:
            raise SourceError("config.json: layer_types: one for each layer, and the last one full, are needed")
        # Without the flag, transformers takes all layers to have as many heads.
        full = _of_full_layers(config, "num_key_value_heads", heads) if config.get("attention_k_eq_v") else heads
        counts = [heads if kind == _SLIDING else full for kind in kinds]
        widths = [wide if i < layers - shared else 2 * wide for i in range(layers)]
        return {
            "attention.sliding_window_pattern": [kind == _SLIDING for kind in kinds],
            "attention.head_count_kv": heads if full == heads else counts,
            "attention.key_length": size, "attention.value_length": size, "rope.dimension_count": size,
            "attention.key_length_swa": config["head_dim"], "attention.value_length_swa": config["head_dim"],
            "rope.dimension_count_swa": config["head_dim"], "attention.shared_kv_layers": shared,
            "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
            "feed_forward_length": widths if config.get("use_double_wide_mlp") and shared else wide,
        }  # fmt: skip


class ProportionalRope(Entry):
    """Say how positions rotate in both kinds of layers.

    In those that attend to everything only the first dimensions of each half of a head do. A file has a factor for each
    pair of dimensions: 1, or one by which nothing rotates.
    """

    def read(self, keys: Keys, config: Config, about: About) -> None:
        factors = about.factors.get(FREQUENCIES, np.ones(config["global_head_dim"] // 2, np.float32))
        count = int((factors == 1).sum())
        if (
            len(factors) != config["global_head_dim"] // 2
            or (factors[:count] != 1).any()
            or (factors[count:] < 1e29).any()
        ):
            raise SourceError(f"{FREQUENCIES} holds other factors than Gemma 4 has")
        config["rope_parameters"] = {
            _FULL: {
                "rope_type": "proportional", "rope_theta": keys.number("rope.freq_base", 1e6),
                "partial_rotary_factor": count / len(factors),
            },
            _SLIDING: {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 1e4)},
        }  # fmt: skip

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        both = config["rope_parameters"]
        kinds = {kind: both[kind]["rope_type"] for kind in (_FULL, _SLIDING)}
        if kinds != {_FULL: "proportional", _SLIDING: "default"}:
            raise SourceError(f"config.json: rope_parameters: {kinds}: llama.cpp's model has no such thing")
        values["rope.freq_base"] = float(both[_FULL]["rope_theta"])
        values["rope.freq_base_swa"] = float(both[_SLIDING]["rope_theta"])


def _scale(theirs: str, ours: str) -> Rows:
    return (Row(f"model.layers.{{}}.{ours}", (f"blk.{{}}.{theirs}",)),)


_ROWS = (
    *outer(), *attention(), *mlp(), *QK_NORMS,
    *norms(
        attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
        ffn_norm="pre_feedforward_layernorm", post_ffw_norm="post_feedforward_layernorm",
        inp_gate="per_layer_input_gate", proj="per_layer_projection", post_norm="post_per_layer_input_norm",
    ),
    *_scale("layer_output_scale.weight", "layer_scalar"),
    *tensor("per_layer_token_embd", "model.embed_tokens_per_layer"),
    *tensor("per_layer_model_proj", "model.per_layer_model_projection"),
    *tensor("per_layer_proj_norm", "model.per_layer_projection_norm"),
)  # fmt: skip
_ENTRIES = (
    *OUTLINE, RMS, LayersOfTwoKinds(), ProportionalRope(), NO_BIAS,
    Number("attention.sliding_window", "sliding_window"),
    Optional("final_logit_softcapping", "final_logit_softcapping", float, absent=0.0),
    Fixed("hidden_activation", "gelu_pytorch_tanh", None), Fixed("use_bidirectional_attention", None, "vision"),
)  # fmt: skip
GEMMA4_MOE = Architecture(
    "gemma4", "gemma4_text", "Gemma4ForCausalLM",
    (
        *_ROWS, *reversed(stacks("experts")),  # the last row first: gate and up go out together
        *_scale("ffn_gate_inp.weight", "router.proj.weight"),
        *_scale("ffn_gate_inp.scale", "router.scale"), *_scale("ffn_down_exps.scale", "router.per_expert_scale"),
        *norms(
            pre_ffw_norm_2="pre_feedforward_layernorm_2", post_ffw_norm_1="post_feedforward_layernorm_1",
            post_ffw_norm_2="post_feedforward_layernorm_2",
        ),
    ),
    (
        *_ENTRIES, Fixed("enable_moe_block", True), Number("expert_count", "num_experts"),
        Number("expert_used_count", "top_k_experts"), EXPERT_SIZE,
    ),
    lambda values, names: "blk.0.ffn_gate_inp.weight" in names,
)  # fmt: skip
GEMMA4 = Architecture(
    "gemma4",
    "gemma4_text",
    "Gemma4ForCausalLM",
    _ROWS,
    (*_ENTRIES, Fixed("enable_moe_block", False, None)),
)

ARCHITECTURES = (GEMMA4_MOE, GEMMA4)
