"""Makes the config of a Mistral model from ``params.json``, as transformers' scripts of conversion do.

Which model it is, its keys say: with ``moe`` Mixtral, with ``llama_4_scaling`` Ministral 3, else Mistral; with
``vision_encoder`` that is the text part of Mistral 3, or of Pixtral, which merges no patches. See ``convert_config`` in
``convert_mistral_weights_to_hf.py``, ``convert_mistral3_weights_to_hf.py`` and ``convert_ministral3_weights_to_hf.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..meta.config import decoder_sizes
from ..meta.params import Params

_KNOWN = frozenset({
    "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta",
    "sliding_window", "max_seq_len", "max_position_embeddings", "tied_embeddings", "yarn", "llama_4_scaling", "moe",
    "quantization", "vision_encoder", "use_biases", "causal", "model_type", "max_batch_size",
})  # fmt: skip
_OTHER = "belongs to a model that is not read here: convert the checkpoint for transformers"
_REFUSED: dict[str, str] = dict.fromkeys(
    ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "audio", "multimodal", "n_groups", "state_size"), _OTHER
)
_MOE = frozenset({"num_experts", "num_experts_per_tok"})
_YARN = frozenset({"original_max_position_embeddings", "factor", "apply_scale", "beta", "alpha"})
_LLAMA_4 = frozenset({"original_max_position_embeddings", "beta"})
_QUANTIZATION = frozenset({"qformat_weight", "qscheme_act"})
_VISION = frozenset({
    "hidden_size", "num_channels", "image_size", "patch_size", "rope_theta", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "max_image_size", "adapter_bias", "mm_projector_id", "spatial_merge_size",
    "add_pre_mm_projector_layer_norm", "image_token_id", "image_break_token_id", "image_end_token_id",
})  # fmt: skip
_MERGER = "patch_merge"
_CONTEXT, _CONTEXT_VISION = 32768, 131072  # tokens; what the scripts assume where nothing is said
_IMAGE = 10  # the token of a patch


def check(params: Params) -> None:
    """Raise SourceError for settings of a model, or of a quantization, that is not read here."""
    params.check_known(_KNOWN, _REFUSED)
    for key, known in (("moe", _MOE), ("yarn", _YARN), ("llama_4_scaling", _LLAMA_4), ("vision_encoder", _VISION),
                       ("quantization", _QUANTIZATION)):  # fmt: skip
        if key in params:
            params.inner(key).check_known(known, {})
    for key, usual in (("use_biases", False), ("causal", True), ("model_type", "transformer")):
        if key in params and params.said[key] != usual:
            raise params.error(key, params.said[key], f"{usual}: another model is not read here")
    if "quantization" in params:
        said = params.inner("quantization")
        if (weights := said.said.get("qformat_weight")) != "fp8_e4m3":
            raise said.error("qformat_weight", weights, "'fp8_e4m3'")
        if (inputs := said.said.get("qscheme_act")) not in (None, "NO_SCALES", "TENSOR"):
            raise said.error("qscheme_act", inputs, "'NO_SCALES' or 'TENSOR'")
    if "vision_encoder" in params and "moe" in params:
        raise params.error("moe", "there beside vision_encoder", "no experts in a model that sees")


def sizes_of(params: Params) -> dict[str, int]:
    """Return the sizes of a model's parts."""
    sizes = decoder_sizes(params, params.count("head_dim") if "head_dim" in params else None)
    sizes |= {"vocabulary": params.count("vocab_size"), "intermediate": params.count("hidden_dim")}
    if "moe" in params:
        sizes["experts"] = params.inner("moe").count("num_experts")
    if "vision_encoder" in params:
        said = params.inner("vision_encoder")
        hidden, heads = said.count("hidden_size"), said.count("num_attention_heads")
        if hidden % (2 * heads):
            raise said.error("num_attention_heads", heads, f"heads of an even size, of {hidden}")
        sizes |= {
            "vision": hidden, "vision.heads": heads, "vision.channels": said.count("num_channels", 3),
            "vision.patch": said.count("patch_size"), "vision.intermediate": said.count("intermediate_size"),
            "vision.merged": hidden * said.count("spatial_merge_size", 1) ** 2,
        }  # fmt: skip
    return sizes


def merges_patches(params: Params) -> bool:
    """Tell whether neighbouring patches of an image are merged, as in Mistral 3 and not in Pixtral."""
    said = params.inner("vision_encoder")
    merged = said.said.get("mm_projector_id") or ""
    if merged not in ("", _MERGER):
        raise said.error("mm_projector_id", merged, repr(_MERGER))
    if (merged == _MERGER) is not said.flag("add_pre_mm_projector_layer_norm"):
        raise said.error("add_pre_mm_projector_layer_norm", said.flag("add_pre_mm_projector_layer_norm"),
                         f"it to go with mm_projector_id {merged!r}")  # fmt: skip
    return merged == _MERGER


def config_of(params: Params, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return what ``config.json`` says of the model."""
    text = _text(params, sizes)
    if "vision_encoder" not in params:
        return text
    said, merged = params.inner("vision_encoder"), merges_patches(params)
    tied = {"tie_word_embeddings": text.pop("tie_word_embeddings")}
    text.pop("architectures")
    vision = {
        "model_type": "pixtral", "hidden_act": "silu", "hidden_size": sizes["vision"],
        "intermediate_size": sizes["vision.intermediate"], "num_hidden_layers": said.count("num_hidden_layers"),
        "num_attention_heads": sizes["vision.heads"], "num_channels": sizes["vision.channels"],
        "image_size": said.count("image_size"), "patch_size": sizes["vision.patch"],
        "rope_parameters": {"rope_type": "axial", "rope_theta": said.number("rope_theta", 10000.0)},
    }  # fmt: skip
    model = (
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "spatial_merge_size": said.count("spatial_merge_size")}
        if merged else
        {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_seq_length": 1,
         "vision_feature_select_strategy": "full"}
    )  # fmt: skip
    return {
        **model, "text_config": text, "vision_config": vision, "vision_feature_layer": -1,
        "projector_hidden_act": "gelu",
        "image_token_index": said.count("image_token_id", _IMAGE),
        "multimodal_projector_bias": said.flag("adapter_bias"), **tied,
    }  # fmt: skip


def _text(params: Params, sizes: Mapping[str, int]) -> dict[str, Any]:
    scaled = "llama_4_scaling" in params
    kind, family = (
        ("mixtral", "MixtralForCausalLM") if "moe" in params
        else ("ministral3", "Ministral3ForCausalLM") if scaled else ("mistral", "MistralForCausalLM")
    )  # fmt: skip
    usual = _CONTEXT_VISION if "vision_encoder" in params else _CONTEXT
    config = {
        "architectures": [family], "model_type": kind, "hidden_act": "silu",
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["intermediate"],
        "num_hidden_layers": params.count("n_layers"), "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["key_heads"], "head_dim": sizes["head"], "vocab_size": sizes["vocabulary"],
        "rms_norm_eps": params.number("norm_eps"),
        "sliding_window": params.count("sliding_window") if "sliding_window" in params else None,
        "max_position_embeddings": params.count("max_position_embeddings", params.count("max_seq_len", usual)),
        "rope_parameters": _rope(params), "tie_word_embeddings": params.flag("tied_embeddings"),
    }  # fmt: skip
    if "moe" in params:
        said = params.inner("moe")
        config |= {"num_local_experts": sizes["experts"], "num_experts_per_tok": said.count("num_experts_per_tok")}
    return config


def _rope(params: Params) -> dict[str, Any]:
    theta = params.number("rope_theta", 10000.0)
    if "yarn" not in params:
        if "llama_4_scaling" in params:
            raise params.error("llama_4_scaling", "there without yarn", "both: its length is that of yarn")
        return {"rope_type": "default", "rope_theta": theta}
    said = params.inner("yarn")
    if said.flag("apply_scale"):
        raise said.error("apply_scale", True, "false, as in models that are known")
    length = said.count("original_max_position_embeddings")
    rope = {
        "rope_type": "yarn", "rope_theta": theta, "factor": said.number("factor"),
        "original_max_position_embeddings": length, "beta_fast": said.number("beta"), "beta_slow": said.number("alpha"),
        "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    if "llama_4_scaling" in params:
        scaling = params.inner("llama_4_scaling")
        if (other := scaling.count("original_max_position_embeddings", length)) != length:
            raise scaling.error("original_max_position_embeddings", other, f"that of yarn, {length}")
        rope["llama_4_scaling_beta"] = scaling.number("beta")
    return rope
