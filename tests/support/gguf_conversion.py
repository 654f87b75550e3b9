"""Write small models as GGUF by the conventions of llama.cpp's conversion, and run them in llama.cpp.

Names come from gguf-py's own table of them, and what is done to tensors is written here with torch: nothing is shared
with the package's exporter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as t

IDS = [5, 900, 77, 300, 2, 8, 8, 41]
SMALL: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SCALES: dict[str, Any] = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip
FALCON: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False,
    "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.1,
}  # fmt: skip
HEADS: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
SECTIONS: dict[str, Any] = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
LATENT: dict[str, Any] = SMALL | {"num_key_value_heads": 4} | EXPERTS | {
    "kv_lora_rank": 64, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 1024, "d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
GEMMA4: dict[str, Any] = SMALL | {
    "num_hidden_layers": 6, "head_dim": 32, "global_head_dim": 64, "sliding_window": 4, "pad_token_id": 0,
    "vocab_size_per_layer_input": 1024, "final_logit_softcapping": 30.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention",
                    "full_attention"],
}  # fmt: skip
LONG: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 512,
    "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip


def partial(factor: float = 0.5) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}


# Name of a case: GGUF's architecture, then what it is a variant of.
CONFIGS: dict[str, Callable[[], t.PreTrainedConfig]] = {
    "llama": lambda: t.LlamaConfig(**SMALL),
    "llama mistral": lambda: t.MistralConfig(**SMALL, head_dim=32, sliding_window=None),
    "llama mixtral": lambda: t.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2": lambda: t.Qwen2Config(**SMALL),
    "qwen3": lambda: t.Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True),
    "gemma": lambda: t.GemmaConfig(**SMALL, head_dim=32),
    "gemma2": lambda: t.Gemma2Config(**SMALL, head_dim=32, sliding_window=4, query_pre_attn_scalar=32),
    "gemma3": lambda: t.Gemma3TextConfig(
        **SMALL | {"num_hidden_layers": 7}, head_dim=32, sliding_window=4, query_pre_attn_scalar=32
    ),
    "gemma4": lambda: t.Gemma4TextConfig(**GEMMA4, hidden_size_per_layer_input=32, num_kv_shared_layers=2),
    "gemma4 wide": lambda: t.Gemma4TextConfig(
        **GEMMA4, hidden_size_per_layer_input=32, num_kv_shared_layers=2, use_double_wide_mlp=True
    ),
    "gemma4 moe": lambda: t.Gemma4TextConfig(
        **GEMMA4, hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=32, attention_k_eq_v=True, num_global_key_value_heads=1,
    ),
    "deci": lambda: t.LlamaConfig(**SMALL),
    "phi3": lambda: t.Phi3Config(**SMALL, original_max_position_embeddings=128, rope_parameters=partial()),
    "phi3 long": lambda: t.Phi3Config(
        **SMALL | {"max_position_embeddings": 1024}, original_max_position_embeddings=512, rope_parameters=LONG
    ),
    "qwen2moe": lambda: t.Qwen2MoeConfig(**SMALL, **EXPERTS, num_experts=4, shared_expert_intermediate_size=64),
    "qwen3moe": lambda: t.Qwen3MoeConfig(**SMALL, **EXPERTS, num_experts=4, head_dim=32, norm_topk_prob=True),
    "gpt-oss": lambda: t.GptOssConfig(
        **SMALL, head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
    ),
    "granite": lambda: t.GraniteConfig(**SMALL, **SCALES),
    "granitemoe": lambda: t.GraniteMoeConfig(**SMALL, **SCALES, num_local_experts=4, num_experts_per_tok=2),
    "olmo2": lambda: t.Olmo2Config(**SMALL),
    "starcoder2": lambda: t.Starcoder2Config(**SMALL, sliding_window=None),
    "stablelm": lambda: t.StableLmConfig(**SMALL, use_qkv_bias=True, rope_parameters=partial()),
    "stablelm parallel": lambda: t.StableLmConfig(**SMALL, use_parallel_residual=True, rope_parameters=partial()),
    "nemotron": lambda: t.NemotronConfig(**SMALL, head_dim=16, rope_parameters=partial()),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1,
        initializer_range=0.1,
    ),
    "bloom": lambda: t.BloomConfig(
        vocab_size=1024, hidden_size=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, initializer_range=0.1
    ),
    "falcon two norms": lambda: t.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "falcon one norm": lambda: t.FalconConfig(
        **FALCON, num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1
    ),
    "falcon one key": lambda: t.FalconConfig(**FALCON),
    "mamba": lambda: t.MambaConfig(
        vocab_size=1024, hidden_size=64, num_hidden_layers=2, state_size=16, bos_token_id=0, eos_token_id=1,
        initializer_range=0.1,
    ),
    "lfm2": lambda: t.Lfm2Config(
        **SMALL | {"num_hidden_layers": 3}, layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "qwen35": lambda: t.Qwen3_5TextConfig(
        **SMALL | {"num_hidden_layers": 4}, **HEADS, rope_parameters=partial() | SECTIONS, head_dim=32
    ),
    # Without key heads that several value heads share, nothing is reordered.
    "qwen35 alike": lambda: t.Qwen3_5TextConfig(
        **SMALL | {"num_hidden_layers": 4}, **HEADS | {"linear_num_key_heads": 4}, head_dim=32,
        rope_parameters=partial() | SECTIONS,
    ),
    "qwen35moe": lambda: t.Qwen3_5MoeTextConfig(
        **SMALL | {"num_hidden_layers": 4} | EXPERTS, **HEADS, head_dim=32, rope_parameters=partial() | SECTIONS,
        shared_expert_intermediate_size=32, num_experts=4,
    ),
    "minimax-m2": lambda: t.MiniMaxM2Config(
        **SMALL, head_dim=32, num_local_experts=4, num_experts_per_tok=2, rope_parameters=partial()
    ),
    "deepseek2": lambda: t.DeepseekV3Config(**LATENT, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "deepseek2 v2": lambda: t.DeepseekV2Config(**LATENT, rope_parameters=YARN, topk_method="greedy"),
    # llama.cpp takes one of 26 or 27 layers to be without a rank of queries.
    "deepseek2 lite": lambda: t.DeepseekV2Config(**LATENT | {"q_lora_rank": None, "num_hidden_layers": 27}),
    # Older files have the matrix whole that keys and values are made with.
    "deepseek2 whole": lambda: t.DeepseekV3Config(**LATENT | {"n_group": 1, "topk_group": 1}),
    "deepseek2 v2 whole": lambda: t.DeepseekV2Config(**LATENT, rope_parameters=YARN),
    "t5": lambda: t.T5Config(**T5),
    "t5 gated": lambda: t.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5 umt5": lambda: t.UMT5Config(**T5, feed_forward_proj="gated-gelu"),
    "t5encoder": lambda: t.T5Config(**T5),
    "t5encoder gated": lambda: t.T5Config(**T5, feed_forward_proj="gated-gelu"),
    "t5encoder umt5": lambda: t.UMT5Config(**T5, feed_forward_proj="gated-gelu"),
    "bert": lambda: t.BertConfig(**{key: value for key, value in SMALL.items() if key != "num_key_value_heads"}),
    "bert distilbert": lambda: t.DistilBertConfig(
        vocab_size=1024, dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=128,
        initializer_range=0.1,
    ),
}  # fmt: skip


# Classes of models that are not made by ``AutoModelForCausalLM``.
CLASSES: dict[str, Any] = {
    "t5": t.T5ForConditionalGeneration, "t5 gated": t.T5ForConditionalGeneration,
    "t5 umt5": t.UMT5ForConditionalGeneration, "t5encoder": t.T5EncoderModel, "t5encoder gated": t.T5EncoderModel,
    "t5encoder umt5": t.UMT5EncoderModel, "bert": lambda config: t.BertModel(config, add_pooling_layer=False),
    "bert distilbert": t.DistilBertModel,
}  # fmt: skip


def model_of(name: str, **changes: Any) -> Any:
    """The model of a case, with weights that are random everywhere, in float32."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    make = CLASSES.get(name, t.AutoModelForCausalLM.from_config)
    model = make(config).float().eval()
    if name == "t5 gated":  # its head is not the embeddings
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(1)
    for key, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "experts" in key:
            value.data = noise * 0.1  # some constructors leave them as they find them
        elif value.ndim == 1:
            value.data += noise * 0.2
        elif not value.any():
            value.data = noise * 0.1
    return model


def permuted(heads: str) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    def permute(x: torch.Tensor, config: Any) -> torch.Tensor:
        n = getattr(config, heads)
        return x.reshape(n, 2, x.shape[0] // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return permute


def heads_together(x: torch.Tensor, config: Any) -> torch.Tensor:
    apart = x.reshape(config.n_head, 3, -1, *x.shape[1:])
    return torch.cat([apart[:, i].reshape(-1, *x.shape[1:]) for i in range(3)])


def groups_together(x: torch.Tensor, config: Any) -> torch.Tensor:
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    qkv = x.view(groups, heads // groups + 2, size, -1)
    parts = (qkv[:, :-2], qkv[:, [-2]], qkv[:, [-1]])
    return torch.cat([part.reshape(-1, x.shape[1]) for part in parts])


def tiled(size: str | None, after_keys: bool = False, dim: int = 0) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """Qwen3.5's value heads: the first of every key head, then the second."""

    def tile(x: torch.Tensor, config: Any) -> torch.Tensor:
        keys, each = config.linear_num_key_heads, getattr(config, size) if size else 1
        first = 2 * keys * config.linear_key_head_dim if after_keys else 0
        head, tail = x[:first], x[first:]
        shape = [*tail.shape[:dim], keys, config.linear_num_value_heads // keys, each, *tail.shape[dim + 1 :]]
        return torch.cat([head, tail.reshape(shape).transpose(dim, dim + 1).reshape(tail.shape)])

    return tile


def negated(x: torch.Tensor, config: Any) -> torch.Tensor:
    return -torch.exp(x)


def squeezed(x: torch.Tensor, config: Any) -> torch.Tensor:
    return x.squeeze(1)


VALUE = "linear_value_head_dim"
ROTATED = {"q_proj": permuted("num_attention_heads"), "k_proj": permuted("num_key_value_heads")}
PLUS_ONE = {"norm.weight": lambda x, config: x + 1}
GATED_DELTA: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "layernorm.weight": PLUS_ONE["norm.weight"], "q_norm.weight": PLUS_ONE["norm.weight"],
    "k_norm.weight": PLUS_ONE["norm.weight"], "model.norm.weight": PLUS_ONE["norm.weight"],
    "in_proj_qkv": tiled(VALUE, after_keys=True), "in_proj_z": tiled(VALUE), "in_proj_a": tiled(None),
    "in_proj_b": tiled(None), "A_log": lambda x, config: negated(tiled(None)(x, config), config),
    "dt_bias": tiled(None), "out_proj": tiled(VALUE, dim=1),
    "conv1d.weight": lambda x, config: squeezed(tiled(VALUE, after_keys=True)(x, config), config),
}
# Architecture -> part of a name -> what llama.cpp's conversion does to the tensor.
CHANGES: dict[str, dict[str, Callable[[torch.Tensor, Any], torch.Tensor]]] = {
    "llama": ROTATED, "deci": ROTATED, "granite": ROTATED, "granitemoe": ROTATED, "gemma": PLUS_ONE, "gemma2": PLUS_ONE,
    "gemma3": PLUS_ONE, "nemotron": PLUS_ONE, "bloom": {"query_key_value": heads_together},
    "falcon": {"query_key_value": groups_together},
    "mamba": {"A_log": negated, "conv1d.weight": squeezed}, "lfm2": {"conv.conv.weight": squeezed},
    "qwen35": GATED_DELTA, "qwen35moe": GATED_DELTA,
    "gpt2": {f"{name}.weight": lambda x, config: x.T for name in ("c_attn", "c_proj", "c_fc")},
}  # fmt: skip


def tensors_of(model: Any, architecture: str, whole: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a model by GGUF's names, as llama.cpp's conversion makes them."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 1 + model.config.num_hidden_layers)
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    for name, x in model.state_dict().items():
        if (name == "lm_head.weight" and tied) or name.endswith("coder.embed_tokens.weight"):
            continue
        for part, change in CHANGES.get(architecture, {}).items():
            if name.endswith(part) or f"{part}." in name:
                x = change(x, model.config)
        for inner, value in _experts(name, x, architecture) if whole or "kv_b_proj" not in name else _split(
            name, x, model.config
        ):
            found = inner if inner.startswith("blk.") else names.get_name(inner, try_suffixes=(".weight", ".bias"))
            assert found is not None, inner
            yield found, value


def _split(name: str, x: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what makes the keys, turned, and what makes the values of each head."""
    both = x.view(config.num_attention_heads, -1, x.shape[-1])
    keys, values = both.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    yield name.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), values


def _experts(name: str, x: torch.Tensor, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield stacks of experts by the names that gguf-py knows, gate and up apart."""
    if name.endswith("sinks"):
        yield name + ".weight", x
    elif name.endswith("dt_bias"):
        yield name.replace("dt_bias", "dt_proj.bias"), x
    elif name.endswith("e_score_correction_bias"):
        place = "block_sparse_moe.e_score_correction.bias" if architecture == "minimax-m2" else None
        inner = name.replace("mlp.e_score_correction_bias", place) if place else name
        yield inner.replace("gate.e_score_correction_bias", "gate.e_score_correction.bias"), x
    elif name.endswith(("router.scale", "per_expert_scale")):
        layer = name.split(".")[2]
        yield f"blk.{layer}.ffn_{'gate_inp' if name.endswith('router.scale') else 'down_exps'}.scale", x
    elif name.endswith("layer_scalar"):
        yield name + ".weight", x
    elif ".experts." not in name:
        name = name.removeprefix("transformer.") if architecture == "bloom" else name
        yield name.replace("block_sparse_moe.router.", "block_sparse_moe.router.layer."), x
    else:
        end = ".bias" if name.endswith("_bias") else ".weight"
        stem = name.removesuffix("_bias").replace("block_sparse_moe.", "mlp.")
        if architecture == "gpt-oss" and end == ".weight":
            x = x.transpose(-1, -2)
        if architecture == "gemma4":  # gate and up stay together
            stem = stem.replace("gate_up_proj", "ffn_gate_up_exps").replace("down_proj", "ffn_down_exps")
            yield stem.replace("model.layers", "blk").replace("experts.", "", 1) + end, x
            return
        if "gate_up_proj" not in stem:
            yield stem + end, x
            return
        halves = (x[:, ::2], x[:, 1::2]) if architecture == "gpt-oss" else x.chunk(2, dim=1)
        for part, half in zip(("gate_proj", "up_proj"), halves, strict=True):
            yield stem.replace("gate_up_proj", part) + end, half


# GGUF's key -> the config's keys, of which the first that is there counts.
KEYS: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"), "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",), "feed_forward_length": ("intermediate_size", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads",), "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",), "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "norm_epsilon", "layer_norm_eps", "norm_eps"),
    "expert_count": ("num_local_experts", "num_experts"), "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attention.sliding_window": ("sliding_window",), "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",), "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",), "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling",),
}  # fmt: skip


def _latent(c: Any) -> dict[str, Any]:
    """The keys of DeepSeek's models as newer files have them; those of older ones are in ``_WHOLE``."""
    values = {
        "attention.head_count_kv": 1, "leading_dense_block_count": c.first_k_dense_replace,
        "attention.kv_lora_rank": c.kv_lora_rank, "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        "attention.value_length": c.kv_lora_rank, "attention.value_length_mla": c.v_head_dim,
        "attention.key_length_mla": c.qk_nope_head_dim + c.qk_rope_head_dim, "expert_count": c.n_routed_experts,
        "expert_shared_count": c.n_shared_experts, "expert_weights_scale": c.routed_scaling_factor,
        "rope.dimension_count": c.qk_rope_head_dim, "expert_gating_func": 2 if c.model_type == "deepseek_v3" else 1,
        "expert_group_count": c.n_group, "expert_group_used_count": c.topk_group,
    }
    if c.q_lora_rank is not None:
        values["attention.q_lora_rank"] = c.q_lora_rank
    if c.norm_topk_prob:
        values["expert_weights_norm"] = True
    if "mscale_all_dim" in c.rope_parameters:
        values["rope.scaling.yarn_log_multiplier"] = 0.1 * c.rope_parameters["mscale_all_dim"]
    if getattr(c, "topk_method", None) == "greedy":
        values["expert_group_count"] = values["expert_group_used_count"] = 1
    return values


def _whole(c: Any) -> dict[str, Any]:
    """The keys of DeepSeek's models in older files, which had no others for attention; ``None`` for those to drop."""
    return {
        "attention.head_count_kv": c.num_attention_heads, "attention.value_length": c.v_head_dim,
        "attention.key_length": c.qk_nope_head_dim + c.qk_rope_head_dim, "attention.key_length_mla": None,
        "attention.value_length_mla": None, "expert_group_count": None, "expert_group_used_count": None,
    }


def _t5(c: Any) -> dict[str, Any]:
    both = {"decoder_block_count": c.num_decoder_layers, "decoder_start_token_id": c.decoder_start_token_id}
    return {
        "context_length": 512, "embedding_length": c.d_model, "feed_forward_length": c.d_ff,
        "block_count": c.num_layers,
        "attention.head_count": c.num_heads, "attention.key_length": c.d_kv, "attention.value_length": c.d_kv,
        "attention.layer_norm_rms_epsilon": c.layer_norm_epsilon, "attention.layer_norm_epsilon": c.layer_norm_epsilon,
        "attention.relative_buckets_count": c.relative_attention_num_buckets, **both,
    }  # fmt: skip


def _gemma4(c: Any) -> dict[str, Any]:
    full, shared = 64, c.num_kv_shared_layers
    windows = [kind == "sliding_attention" for kind in c.layer_types]
    values = {
        "attention.shared_kv_layers": shared, "attention.sliding_window_pattern": windows,
        "embedding_length_per_layer_input": c.hidden_size_per_layer_input, "attention.key_length": full,
        "attention.value_length": full, "attention.key_length_swa": 32, "attention.value_length_swa": 32,
        "rope.dimension_count": full, "rope.dimension_count_swa": 32,
    }
    if c.use_double_wide_mlp:
        values["feed_forward_length"] = [96 if i < 6 - shared else 192 for i in range(6)]
    if c.enable_moe_block:
        values |= {"expert_used_count": c.top_k_experts, "attention.head_count_kv": [2 if w else 1 for w in windows]}
    return values


def _gated_delta(c: Any) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": c.linear_conv_kernel_dim, "ssm.state_size": c.linear_key_head_dim,
        "ssm.group_count": c.linear_num_key_heads, "ssm.time_step_rank": c.linear_num_value_heads,
        "ssm.inner_size": c.linear_value_head_dim * c.linear_num_value_heads, "full_attention_interval": 4,
        "rope.dimension_sections": [*c.rope_parameters["mrope_section"], 0],
    }


OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "mamba": lambda c: {
        "context_length": 1 << 20, "feed_forward_length": 0, "attention.head_count": 0,
        "ssm.conv_kernel": c.conv_kernel, "ssm.inner_size": c.intermediate_size, "ssm.state_size": c.state_size,
        "ssm.time_step_rank": c.time_step_rank, "attention.layer_norm_rms_epsilon": c.layer_norm_epsilon,
    },
    "lfm2": lambda c: {
        "attention.head_count_kv": [c.num_key_value_heads if kind != "conv" else 0 for kind in c.layer_types],
        "attention.layer_norm_rms_epsilon": c.norm_eps, "shortconv.l_cache": c.conv_L_cache,
        "vocab_size": c.vocab_size,
    },
    "qwen35": _gated_delta, "qwen35moe": _gated_delta, "deepseek2": _latent, "t5": _t5,
    "bert": lambda c: {
        "attention.causal": False, "pooling_type": 1, "attention.layer_norm_epsilon": 1e-12,
        "feed_forward_length": getattr(c, "hidden_dim", None) or c.intermediate_size,
    },
    "t5encoder": lambda c: {key: value for key, value in _t5(c).items() if not key.startswith("decoder")},
    "gemma4": _gemma4,
    "minimax-m2": lambda c: {"expert_feed_forward_length": c.intermediate_size, "expert_gating_func": 2},
}  # fmt: skip


def keys_of(config: Any, architecture: str, whole: bool = False) -> dict[str, Any]:
    """The keys of the architecture that llama.cpp's conversion writes."""
    values: dict[str, Any] = {}
    config = copy.deepcopy(config)
    config.allow_global_per_layer_attribute_access = True  # what Gemma 4 has apart is in ``_gemma4``
    for key, names in KEYS.items():
        found = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        if found is not None and not isinstance(found, bool):
            values[key] = found
    if architecture in ("gpt2", "bloom", "falcon"):
        values["feed_forward_length"] = 4 * config.hidden_size
        values.setdefault("context_length", 2048)
    if architecture == "bloom":
        values["attention.head_count_kv"] = config.n_head
    if architecture == "falcon":
        values["attention.head_count_kv"] = config.num_kv_heads if config.new_decoder_architecture else 1
    if architecture in ("granite", "granitemoe"):
        values.pop("attention.key_length", None)
        values.pop("attention.value_length", None)
    if architecture == "gpt-oss":
        values["expert_feed_forward_length"] = config.intermediate_size
    if architecture == "stablelm":
        values["use_parallel_residual"] = config.use_parallel_residual
    if architecture in ("mamba", "lfm2"):
        values.pop("attention.layer_norm_epsilon")
    values |= OTHERS.get(architecture, lambda config: {})(config)
    rope = getattr(config, "rope_parameters", None) or {}
    both = rope if "full_attention" not in rope else rope["full_attention"] | {"local": rope["sliding_attention"]}
    for key, name in (("freq_base", "rope_theta"), ("scaling.factor", "factor")):
        if name in both and both["rope_type"] != "longrope":
            values[f"rope.{key}"] = both[name]
    if "local" in both:
        values["rope.freq_base_swa"] = both["local"]["rope_theta"]
    if both.get("rope_type") in ("linear", "yarn"):
        values["rope.scaling.type"] = both["rope_type"]
    if "original_max_position_embeddings" in both:
        values["rope.scaling.original_context_length"] = both["original_max_position_embeddings"]
    for name in ("beta_fast", "beta_slow"):
        if name in both:
            values[f"rope.scaling.yarn_{name}"] = both[name]
    if "long_factor" in both:
        scale = config.max_position_embeddings / both["original_max_position_embeddings"]
        original = both["original_max_position_embeddings"]
        factor = torch.sqrt(1 + torch.log(torch.tensor(scale)) / torch.log(torch.tensor(float(original))))
        values["rope.scaling.attn_factor"] = float(factor)
    if "partial_rotary_factor" in both and architecture != "gemma4":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        values["rope.dimension_count"] = int(size * both["partial_rotary_factor"])
    values |= _whole(config) if whole else {}
    return {key: value for key, value in values.items() if value is not None}


TOKENS = [f"t{i}" for i in range(1021)] + ["a", "b", "ab"]  # all of them whole characters
TOKENS[10] = "\u010a"  # a line's end, which llama.cpp looks for


FLOATS = ("position_embd.weight", "token_types.weight")


Blocks = tuple[gguf.GGMLQuantizationType, np.ndarray]


def convert(
    model: Any, case: str, path: Any, kind: str = "f32", tokens: bool = True,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None, blocks: Mapping[str, Blocks] | None = None,
) -> dict[str, bytes]:  # fmt: skip
    """Write the GGUF file of a case; matrices become blocks of ``kind``. Returns the bytes of each tensor by name.

    ``tokenizer`` adds one to the writer, instead of the usual one; ``blocks`` are types and blocks of some tensors that
    take the place of their values.
    """
    architecture, *variant = case.split()
    whole = "whole" in variant  # what makes keys and values of DeepSeek's heads is one matrix, as it was at first
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys_of(model.config, architecture, whole).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add |= {list: writer.add_array}
        add[type(value)](f"{architecture}.{key}", value)
    if tokenizer:
        tokenizer(writer)
    elif tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3] + [1] * 1022)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_eos_token(False)
        writer.add_add_bos_token(False)
    if architecture == "bert":
        writer.add_token_type_count(getattr(model.config, "type_vocab_size", 1))
    tensors = dict(tensors_of(model, architecture, whole))
    rope = getattr(model.config, "rope_parameters", None) or {}
    for name in ("long", "short"):
        if f"{name}_factor" in rope:
            tensors[f"rope_factors_{name}.weight"] = torch.tensor(rope[f"{name}_factor"])
    if architecture == "gemma4":  # a quarter of the dimensions rotate
        tensors["rope_freqs.weight"] = torch.tensor([1.0] * 8 + [1e30] * 24)
    found = {}
    for name, x in tensors.items():
        array = x.detach().float().contiguous().numpy()
        small = array.ndim == 1 or not name.endswith(".weight")
        small |= array.shape[-1] % 32 != 0
        small |= any(part in name for part in ("norm", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv."))
        wanted = gguf.GGMLQuantizationType["F32" if small or name in FLOATS else kind.upper()]
        if name in (blocks or {}):
            wanted, data = blocks[name]
        else:
            data = gguf.quants.quantize(array, wanted)
        writer.add_tensor(name, data, raw_dtype=wanted)
        found[name] = data.tobytes()
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return found


def server(path: Any, encoder: bool = False) -> Any:
    """llama.cpp with a model, to be asked by ``llama_cpp``, or one that encodes, by ``embedding``."""
    x = pytest.importorskip("xllamacpp", reason="llama.cpp comes with xllamacpp, which is not installed")
    parameters = x.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(path), 512, 1
    parameters.warmup = parameters.fit_params = False
    parameters.verbosity, parameters.n_gpu_layers, parameters.cpuparams.n_threads = -1, 0, 2
    parameters.cache_type_k = parameters.cache_type_v = x.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if encoder:
        parameters.embedding, parameters.pooling_type = True, x.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        parameters.attention_type = x.llama_attention_type.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    return x.Server(parameters)


def embedding(running: Any, prompt: Any = IDS) -> torch.Tensor:
    """What llama.cpp makes of ``prompt``: the mean of its states, of length 1."""
    answer: Any = running.handle_embeddings({"input": prompt})
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    (found,) = answer["data"]
    return torch.tensor(found["embedding"])


def llama_cpp(running: Any, prompt: Any = IDS, count: int = 6, **options: Any) -> tuple[str, dict[int, float]]:
    """What llama.cpp writes after ``prompt``, without sampling, and its logits after it, up to a constant."""
    request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "n_probs": 1024, "cache_prompt": False}
    answer: Any = running.handle_completions(request | options)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    (choice,) = answer["choices"]
    first = choice["logprobs"]["content"][0]["top_logprobs"]
    return choice["text"], {each["id"]: each["logprob"] for each in first}
