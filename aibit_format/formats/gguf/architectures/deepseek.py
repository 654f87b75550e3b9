"""Describes DeepSeek V2 and V3, and what is made like them (Kimi K2, Moonlight), in both forms that files have.

Their attention is latent: a matrix ``kv_b`` makes the keys and values of all heads from few numbers. Newer files have
it as two stacks, of which that of the keys is turned, so that its blocks run the other way; older ones have it whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ....errors import SourceError
from ..architecture import Architecture, Row
from ..config_attention import Rope
from ..config_keys import About, Config, Constant, Derived, Entry, Fixed, Number, Optional
from ..keys import Keys
from ..operations import KEYS_AND_VALUES
from ..rope import parameters_of
from .rows import LLAMA_NORMS, experts, mlp, outer, shared_experts, tensor
from .shared import EXPERT_SIZE, NO_BIAS, OUTLINE, RMS, SIGMOID, SILU, USED, WIDTH


class LatentHeads(Entry):
    """Say the sizes of heads: of keys without and with rotation, and of values.

    ``split`` is the form in which llama.cpp takes all heads to share one key, as wide as what keys are made from.
    """

    def __init__(self, split: bool) -> None:
        self.split = split

    def read(self, keys: Keys, config: Config, about: About) -> None:
        rank, rotated = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count")
        end = "_mla" if self.split else ""
        size = keys.integer(f"attention.key_length{end}")
        if size <= rotated:
            raise keys.wrong(
                f"attention.key_length{end}", size, f"{rotated} of the dimensions rotate, and others do not"
            )
        config |= {
            "kv_lora_rank": rank, "qk_nope_head_dim": size - rotated, "qk_rope_head_dim": rotated,
            "v_head_dim": keys.integer(f"attention.value_length{end}"),
            "num_key_value_heads": config["num_attention_heads"],
        }  # fmt: skip
        for key, needed in self._shared(config).items():
            if keys.scalar(key, needed) != needed:
                raise keys.wrong(key, keys.get(key), f"{needed} is needed")

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        end = "_mla" if self.split else ""
        size = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        values |= {
            "attention.kv_lora_rank": config["kv_lora_rank"], f"attention.key_length{end}": size,
            f"attention.value_length{end}": config["v_head_dim"], **self._shared(config),
        }  # fmt: skip

    def _shared(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return what llama.cpp takes the one key to be."""
        rank = config["kv_lora_rank"]
        whole = {"attention.key_length": rank + config["qk_rope_head_dim"], "attention.value_length": rank}
        return whole if self.split else {}


class LatentRope(Rope):
    """Say how the rotated part of a head rotates. Scores are scaled by ``mscale``, which a file has a tenth of."""

    def size(self, config: Mapping[str, Any]) -> int:
        return config["qk_rope_head_dim"]

    def read(self, keys: Keys, config: Config, about: About) -> None:
        super().read(keys, config, about)
        if config["rope_parameters"]["rope_type"] == "yarn":
            scale = float(f"{10 * keys.number(_SCALE):.6g}")
            config["rope_parameters"] |= {"mscale": scale, "mscale_all_dim": scale}

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        parameters = {**parameters_of(config)}
        scale, every = (parameters.pop(key, None) for key in ("mscale", "mscale_all_dim"))
        super().write({**config, "rope_parameters": parameters}, values)
        if parameters["rope_type"] == "yarn":
            if not every or scale != every:
                raise SourceError(f"config.json: mscale {scale}, mscale_all_dim {every}: llama.cpp has one number")
            values[_SCALE] = every / 10


_SCALE = "rope.scaling.yarn_log_multiplier"


class Groups(Entry):
    """Say how many groups of experts there are, and of how many of them a token uses experts (DeepSeek V2)."""

    def read(self, keys: Keys, config: Config, about: About) -> None:
        groups = keys.integer("expert_group_count", 1)
        config |= {"n_group": groups, "topk_group": keys.integer("expert_group_used_count", 1)}
        config["topk_method"] = "greedy" if groups == 1 else "group_limited_greedy"

    def write(self, config: Mapping[str, Any], values: Config) -> None:
        method = config.get("topk_method") or "greedy"
        if method not in ("greedy", "group_limited_greedy"):
            raise SourceError(f"config.json: topk_method {method!r:.60}: llama.cpp's model has no such thing")
        grouped = method != "greedy"
        values["expert_group_count"] = config["n_group"] if grouped else 1
        values["expert_group_used_count"] = config["topk_group"] if grouped else 1


_ATTENTION = (
    *tensor("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    *tensor("blk.{}.attn_q_a", "model.layers.{}.self_attn.q_a_proj"),
    *tensor("blk.{}.attn_q_a_norm", "model.layers.{}.self_attn.q_a_layernorm"),
    *tensor("blk.{}.attn_q_b", "model.layers.{}.self_attn.q_b_proj"),
    *tensor("blk.{}.attn_kv_a_mqa", "model.layers.{}.self_attn.kv_a_proj_with_mqa"),
    *tensor("blk.{}.attn_kv_a_norm", "model.layers.{}.self_attn.kv_a_layernorm"),
    *tensor("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
)
_ROWS = (*outer(), *LLAMA_NORMS, *_ATTENTION, *mlp(), *experts(), *shared_experts("shared_experts"))
_SPLIT = (
    Row(
        "model.layers.{}.self_attn.kv_b_proj.weight", ("blk.{}.attn_k_b.weight", "blk.{}.attn_v_b.weight"),
        KEYS_AND_VALUES,
    ),
)  # fmt: skip
_WHOLE = tensor("blk.{}.attn_kv_b", "model.layers.{}.self_attn.kv_b_proj")
_BIAS = (Row("model.layers.{}.mlp.gate.e_score_correction_bias", ("blk.{}.exp_probs_b.bias",)),)

_ENTRIES = (
    *OUTLINE, WIDTH, RMS, Optional("attention.q_lora_rank", "q_lora_rank"), NO_BIAS, SILU,
    Number("leading_dense_block_count", "first_k_dense_replace", least=0), Number("expert_count", "n_routed_experts"),
    USED, EXPERT_SIZE, Number("expert_shared_count", "n_shared_experts"),
    Number("expert_weights_scale", "routed_scaling_factor", float, otherwise=1.0), Fixed("pretraining_tp", None, 0, 1),
)  # fmt: skip
_SPLIT_ENTRIES = (*_ENTRIES, Constant("attention.head_count_kv", 1), LatentHeads(True), LatentRope())
_WHOLE_ENTRIES = (
    *_ENTRIES, Derived("attention.head_count_kv", "num_attention_heads"), LatentHeads(False), LatentRope(),
)  # fmt: skip
_V2 = (
    Groups(), Constant("expert_gating_func", 1, None), Constant("expert_weights_norm", None, False),
    Fixed("norm_topk_prob", False, None), Fixed("mlp_bias", False, None),
)  # fmt: skip
_V3 = (
    Number("expert_group_count", "n_group", otherwise=1), Number("expert_group_used_count", "topk_group", otherwise=1),
    SIGMOID, Number("expert_weights_norm", "norm_topk_prob", bool, otherwise=False),
    Fixed("rope_interleave", True, None), Fixed("topk_method", None, "noaux_tc"),
    Fixed("scoring_func", None, "sigmoid"),
)  # fmt: skip


def _is_split(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return "blk.0.attn_kv_b.weight" not in names


def _is_v3(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return str(values.get("deepseek2.expert_gating_func")) == "2"


DEEPSEEK_V3 = Architecture(
    "deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM", (*_ROWS, *_SPLIT, *_BIAS), (*_SPLIT_ENTRIES, *_V3),
    lambda values, names: _is_v3(values, names) and _is_split(values, names),
)  # fmt: skip
DEEPSEEK_V3_WHOLE = Architecture(
    "deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM", (*_ROWS, *_WHOLE, *_BIAS), (*_WHOLE_ENTRIES, *_V3), _is_v3
)
DEEPSEEK_V2 = Architecture(
    "deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM", (*_ROWS, *_SPLIT), (*_SPLIT_ENTRIES, *_V2), _is_split
)
DEEPSEEK_V2_WHOLE = Architecture(
    "deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM", (*_ROWS, *_WHOLE), (*_WHOLE_ENTRIES, *_V2)
)

ARCHITECTURES = (DEEPSEEK_V3, DEEPSEEK_V3_WHOLE, DEEPSEEK_V2, DEEPSEEK_V2_WHOLE)
