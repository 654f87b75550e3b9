"""Makes the smallest configuration of any model type that still has its shape: two layers, four heads, 160 tokens."""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, WIDTH, HEADS, LAYERS = 160, 64, 4, 2

# Key -> value, for integers; the first expression that matches decides. Smaller values stay.
_SMALLER = tuple(
    (re.compile(expression), value)
    for expression, value in (
        (r"feat_extract", 1 << 30),  # a list has as many numbers
        (r"vocab_size|^n_vocab$|^n_words$", VOCABULARY),
        (r"mamba_.*heads$|n_mamba_heads", 8),  # of 16 each: twice the width
        (r"mamba_d_ssm", 2 * WIDTH),
        (r"mamba_d_head", 16),
        (r"n_groups$|num_groups$|mamba_n_groups", 2),
        (r"codebook_size|num_codes", 128),
        (r"(key_value_heads|kv_heads|num_kv|n_kv)", 2),
        (r"^(head_dim|d_kv|.*_head_dim|attention_head_size|kv_channels|attention_key_dim|dim_head|qk_.*dim)$", 16),
        (r"rotary_dim", 8),
        (r"kv_lora_rank|q_lora_rank|_rank$", 16),
        (r"heads?$|heads_per|^n_head|_heads", HEADS),
        (r"^(n_group|num_expert_groups?)$", 2),
        (r"topk_group", 1),
        (r"(per_tok|top_k|topk|experts_per)", 2),
        (r"experts", 4),
        (r"(layers|n_layer|blocks|depth|num_stages?)$", LAYERS),
        (r"intermediate|ffn|d_ff|mlp_dim|n_inner|inner_dim|feedforward", 128),
        (r"(n_embd|embedding_size|_dim|^dim|width|d_embed)$|hidden_size|word_embed_proj_dim|d_model", WIDTH),
        (r"image_size", 32),
        (r"patch_size", 8),
        (r"max_position|n_positions|max_source|max_target|context_length|n_ctx|max_len|seq_len|max_seq|position", 64),
        (r"mel_bins|n_mels|num_mel", 16),
        (r"sliding_window|window_size|attention_window", 8),
        (r"state_size|ssm_state", 8),
        (r"num_queries|queries", 10),
    )
)  # fmt: skip
_IDS = re.compile(r"token_id$|token_index$|_token$|_idx$|token_ids$")

_LEFT_OUT = frozenset({
    "transformers_version", "architectures", "dtype", "model_type", "layer_types", "mlp_layer_types", "rope_parameters",
    "id2label", "label2id", "out_features", "out_indices", "stage_names", "per_layer_config",
})  # fmt: skip

# What cannot be read from the keys: values that have to agree with each other.
_OVER: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a small configuration of a model type; it is not certain that a model can be built from it."""
    return _shrunk(CONFIG_MAPPING[model_type], model_type)


def _shrunk(family: type[PreTrainedConfig], model_type: str) -> PreTrainedConfig:
    whole = family()
    values: dict[str, Any] = {}
    inner = {key for key, value in vars(whole).items() if isinstance(value, PreTrainedConfig)}
    for key, value in whole.to_dict().items():
        if key in inner:
            values[key] = _shrunk(type(vars(whole)[key]), vars(whole)[key].model_type).to_dict()
        elif key not in _LEFT_OUT and not key.startswith("_"):
            values[key] = _smaller(key, value)
    for key in ("layer_types", "mlp_layer_types"):
        found = getattr(whole, key, None)
        if isinstance(found, list) and key in type(whole).__dataclass_fields__:
            # One layer of each kind, so that none is left out.
            kinds = list(dict.fromkeys(found))
            values[key] = (kinds * LAYERS)[: max(LAYERS, len(kinds))]
            for name in ("num_hidden_layers", "num_layers", "n_layer"):
                if name in values:
                    values[name] = len(values[key])
    if "qk_rope_head_dim" in values:  # attention over a latent: each head has its own keys
        values["num_key_value_heads"] = values["num_attention_heads"]
        if "qk_head_dim" in values:
            values["qk_head_dim"] = values["qk_rope_head_dim"] + values["qk_nope_head_dim"]
    if "head_dim" in values and values["head_dim"] is None:
        values["head_dim"] = WIDTH // HEADS
    rope = getattr(whole, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        values["rope_parameters"] = {**rope, "mrope_section": [2, 3, 3]}
    values |= _OVER.get(model_type, {})
    return family(**values)


def _smaller(key: str, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if _IDS.search(key):
            return min(value, 3 + sum(map(ord, key)) % 100) if value >= VOCABULARY else value
        for expression, most in _SMALLER:
            if expression.search(key):
                return min(value, most)
        return value
    if isinstance(value, (list, tuple)) and value and all(type(each) is int for each in value):
        if re.search(r"depths|layers$|blocks", key):
            return [min(each, 1) for each in value]
        if re.search(r"hidden_sizes|embed_dims|channels|_dims?$|dims$", key) and len(set(value)) > 1:
            return [WIDTH // 2 * 2**i if i < 3 else WIDTH * 4 for i in range(len(value))]
        if re.search(r"heads", key):
            return [min(each, 2) for each in value]
        if re.search(r"image_size", key):
            return [min(each, 32) for each in value]
        return [_smaller(key, each) for each in value]
    return value
