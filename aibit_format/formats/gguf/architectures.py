"""Lists the architectures that both GGUF and transformers know. A new one is a block of rows here.

Facts are those of llama.cpp's ``convert_hf_to_gguf.py`` and ``src/models``, and of the models in transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .architecture import Architecture, Row
from .config_keys import (
    AdjustedWidth,
    Constant,
    ConvolutionLayers,
    Derived,
    EachHead,
    Fixed,
    HeadSize,
    LayerTypes,
    LinearLayers,
    Number,
    Optional,
    QueryScale,
    Rope,
    SectionedRope,
    TwoRopes,
    Window,
    WithoutTensor,
    Written,
)  # fmt: skip
from .operations import (
    JOINED,
    NEGATED_EXPONENTIAL,
    SAME,
    SHIFTED,
    TURNED,
    TURNED_EACH,
    Columns,
    Interleaved,
    Operation,
    Permuted,
    RowVector,
    Squeezed,
    Then,
    by_groups,
    by_heads,
    by_key_heads,
    rotary,
)  # fmt: skip

Rows = tuple[Row, ...]


def _tensor(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    """Return the row of a weight, and that of its bias: ``bias`` is the config's key that gives one, or ``""``."""
    weight = Row(f"{ours}.weight", (f"{theirs}.weight",), operation)
    if bias is None:
        return (weight,)
    move = SAME if operation is TURNED else operation
    return (weight, Row(f"{ours}.bias", (f"{theirs}.bias",), move, bias or None))


def _outer(embeddings: str = "model.embed_tokens", norm: str = "model.norm", head: str = "lm_head", shift: bool = False,
           bias: str | None = None) -> Rows:  # fmt: skip
    return (
        *_tensor("token_embd", embeddings),
        *_tensor("output_norm", norm, SHIFTED if shift else SAME),
        *((Row(f"{norm}.bias", ("output_norm.bias",)),) if bias is not None else ()),
        *_tensor("output", head),
    )


def _norm(theirs: str, ours: str, shift: bool = False, bias: bool = False) -> Rows:
    """Return the rows of a norm; ``shift``: transformers adds one to its weights."""
    found = _tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.{ours}", SHIFTED if shift else SAME)
    return (*found, Row(f"model.layers.{{}}.{ours}.bias", (f"blk.{{}}.{theirs}.bias",))) if bias else found


def _norms(shift: bool = False, bias: bool = False, **names: str) -> Rows:
    return tuple(row for theirs, ours in names.items() for row in _norm(theirs, ours, shift, bias))


def _attention(rotated: bool = False, qkv: str | None = None, out: str | None = None) -> Rows:
    """Return the rows of q, k, v and o; ``rotated``: with llama.cpp's order of rows. ``qkv``, ``out``: their biases."""
    query, key = ("num_attention_heads", "num_key_value_heads")
    inner = "model.layers.{}.self_attn."
    return (
        *_tensor("blk.{}.attn_q", f"{inner}q_proj", rotary(query) if rotated else SAME, qkv),
        *_tensor("blk.{}.attn_k", f"{inner}k_proj", rotary(key) if rotated else SAME, qkv),
        *_tensor("blk.{}.attn_v", f"{inner}v_proj", SAME, qkv),
        *_tensor("blk.{}.attn_output", f"{inner}o_proj", SAME, out),
    )


def _mlp(bias: str | None = None, gate: bool = True, up: str = "mlp.up_proj", down: str = "mlp.down_proj") -> Rows:
    return (
        *(_tensor("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj", SAME, bias) if gate else ()),
        *_tensor("blk.{}.ffn_up", f"model.layers.{{}}.{up}", SAME, bias),
        *_tensor("blk.{}.ffn_down", f"model.layers.{{}}.{down}", SAME, bias),
    )


def _experts(place: str = "mlp", router: str = "gate") -> Rows:
    """Return the rows of stacked experts. transformers joins their gate and up, and so do some newer files."""
    inner = f"model.layers.{{}}.{place}."
    return (
        Row(f"{inner}experts.gate_up_proj", ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"), JOINED),
        Row(f"{inner}experts.gate_up_proj", ("blk.{}.ffn_gate_up_exps.weight",)),
        Row(f"{inner}experts.down_proj", ("blk.{}.ffn_down_exps.weight",)),
        *_tensor("blk.{}.ffn_gate_inp", f"{inner}{router}"),
    )


_LLAMA_NORMS = _norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
_QK_NORMS = _norms(attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")

_LAYERS = Number("block_count", "num_hidden_layers")
_SIZES = (
    Number("context_length", "max_position_embeddings"), Number("embedding_length", "hidden_size"), _LAYERS,
    Number("feed_forward_length", "intermediate_size"), Number("attention.head_count", "num_attention_heads"),
    Number("attention.head_count_kv", "num_key_value_heads", otherwise="num_attention_heads"),
)  # fmt: skip
_RMS = Number("attention.layer_norm_rms_epsilon", "rms_norm_eps", float)
_SILU = Fixed("hidden_act", "silu", None)
_LLAMA = (*_SIZES, _RMS, HeadSize(), Rope(), _SILU, Fixed("pretraining_tp", None, 0, 1))
_QWEN2 = (*_SIZES, _RMS, HeadSize(None, written=False), Rope(), _SILU, Fixed("use_sliding_window", False, None))
_QWEN3 = (*_SIZES, _RMS, HeadSize(), Rope(), _SILU, Fixed("use_sliding_window", False, None))
_USED = Number("expert_used_count", "num_experts_per_tok")
_EXPERT_SIZE = Number("expert_feed_forward_length", "moe_intermediate_size")
_EVERY_LAYER = (Fixed("decoder_sparse_step", 1, None), Fixed("mlp_only_layers", [], None))
_SCALES = (
    Number("attention.scale", "attention_multiplier", float), Number("embedding_scale", "embedding_multiplier", float),
    Number("residual_scale", "residual_multiplier", float), Number("logit_scale", "logits_scaling", float),
    Constant("rope.scaling.finetuned", None, True),
)  # fmt: skip


def _has_experts(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return "blk.0.ffn_gate_inp.weight" in names


def _has_none(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return not _has_experts(values, names)


def _never(values: Mapping[str, Any], names: Collection[str]) -> bool:
    return False


LLAMA = Architecture(
    "llama", "llama", "LlamaForCausalLM",
    (*_outer(), *_LLAMA_NORMS, *_attention(True, "attention_bias", "attention_bias"), *_mlp("mlp_bias")), _LLAMA,
    _has_none,
)  # fmt: skip
# A file of a Mistral model becomes a Llama, which computes the same; a Mistral becomes such a file.
MISTRAL = Architecture(
    "llama", "mistral", "MistralForCausalLM", (*_outer(), *_LLAMA_NORMS, *_attention(True), *_mlp()),
    (*_LLAMA, Window()), _never,
)  # fmt: skip
MIXTRAL = Architecture(
    "llama", "mixtral", "MixtralForCausalLM", (*_outer(), *_LLAMA_NORMS, *_attention(True), *_experts()),
    (*_LLAMA, Window(), Number("expert_count", "num_local_experts"), _USED), _has_experts,
)  # fmt: skip
QWEN2 = Architecture(
    "qwen2", "qwen2", "Qwen2ForCausalLM", (*_outer(), *_LLAMA_NORMS, *_attention(qkv=""), *_mlp()), _QWEN2
)
QWEN3 = Architecture(
    "qwen3", "qwen3", "Qwen3ForCausalLM",
    (*_outer(), *_LLAMA_NORMS, *_QK_NORMS, *_attention(qkv="attention_bias", out="attention_bias"), *_mlp()), _QWEN3,
)  # fmt: skip
QWEN2_MOE = Architecture(
    "qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM",
    (
        *_outer(), *_LLAMA_NORMS, *_attention(qkv=""), *_experts(),
        *_tensor("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
        *_tensor("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
        *_tensor("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"),
        *_tensor("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate", RowVector()),
    ),
    (
        *_QWEN2, Number("expert_count", "num_experts", also="num_local_experts"), _USED, _EXPERT_SIZE,
        Number("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        Fixed("norm_topk_prob", False, None), Fixed("qkv_bias", True, None), *_EVERY_LAYER,
    ),
)  # fmt: skip
QWEN3_MOE = Architecture(
    "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM",
    (
        *_outer(), *_LLAMA_NORMS, *_QK_NORMS, *_attention(qkv="attention_bias", out="attention_bias"), *_experts(),
    ),
    (
        *_QWEN3, Number("expert_count", "num_experts", also="num_local_experts"), _USED, _EXPERT_SIZE,
        Fixed("norm_topk_prob", True), *_EVERY_LAYER,
    ),
)  # fmt: skip

_GEMMA_NORMS = _norms(
    shift=True, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm", post_ffw_norm="post_feedforward_layernorm",
)  # fmt: skip
_GELU = Fixed("hidden_activation", "gelu_pytorch_tanh", None)
_CAUSAL = Fixed("use_bidirectional_attention", None, False)
_NO_BIAS = Fixed("attention_bias", False, None)

GEMMA = Architecture(
    "gemma", "gemma", "GemmaForCausalLM",
    (
        *_outer(shift=True), *_norms(shift=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *_attention(), *_mlp(),
    ),
    (*_SIZES, _RMS, HeadSize(), Rope(), _NO_BIAS, Fixed("hidden_act", "gelu_pytorch_tanh", "gelu", None), _GELU),
)  # fmt: skip
GEMMA2 = Architecture(
    "gemma2", "gemma2", "Gemma2ForCausalLM", (*_outer(shift=True), *_GEMMA_NORMS, *_attention(), *_mlp()),
    (
        *_SIZES, _RMS, HeadSize(), Rope(), QueryScale(46), LayerTypes(2), _GELU, _CAUSAL, _NO_BIAS,
        Number("attention.sliding_window", "sliding_window", otherwise=4096),
        Number("attn_logit_softcapping", "attn_logit_softcapping", float, otherwise=50.0),
        Number("final_logit_softcapping", "final_logit_softcapping", float, otherwise=30.0),
    ),
)  # fmt: skip
GEMMA3 = Architecture(
    "gemma3", "gemma3_text", "Gemma3ForCausalLM",
    (
        *_outer(shift=True), *_GEMMA_NORMS, *_attention(), *_mlp(),
        *_norms(shift=True, attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm"),
    ),
    (
        *_SIZES, _RMS, HeadSize(), TwoRopes(), QueryScale(62), LayerTypes(6), _GELU, _CAUSAL, _NO_BIAS,
        Number("attention.sliding_window", "sliding_window"), Fixed("attn_logit_softcapping", None),
        Optional("final_logit_softcapping", "final_logit_softcapping", float, absent=0.0),
    ),
)  # fmt: skip
PHI3 = Architecture(
    "phi3", "phi3", "Phi3ForCausalLM",
    (
        *_outer(), *_LLAMA_NORMS, *_tensor("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
        *_tensor("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
        *_tensor("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
        *_tensor("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
    ),
    (
        *_SIZES, _RMS, HeadSize(None, written=False), _SILU,
        Number(
            "rope.scaling.original_context_length", "original_max_position_embeddings",
            otherwise="max_position_embeddings",
        ),
        Rope(partial=True), Optional("attention.sliding_window", "sliding_window", absent=0),
    ),
)  # fmt: skip
GPT_OSS = Architecture(
    "gpt-oss", "gpt_oss", "GptOssForCausalLM",
    (
        *_outer(), *_norms(attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
        *_attention(qkv="", out=""), *_tensor("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router", bias=""),
        Row("model.layers.{}.self_attn.sinks", ("blk.{}.attn_sinks.weight",)),
        Row(
            "model.layers.{}.mlp.experts.gate_up_proj", ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"),
            Interleaved(turned_each=True),
        ),
        Row(
            "model.layers.{}.mlp.experts.gate_up_proj_bias", ("blk.{}.ffn_gate_exps.bias", "blk.{}.ffn_up_exps.bias"),
            Interleaved(),
        ),
        Row("model.layers.{}.mlp.experts.down_proj", ("blk.{}.ffn_down_exps.weight",), TURNED_EACH),
        Row("model.layers.{}.mlp.experts.down_proj_bias", ("blk.{}.ffn_down_exps.bias",)),
    ),
    (
        *_SIZES, _RMS, HeadSize(), Rope(extra=(("truncate", False),)), _SILU, LayerTypes(2),
        Number("expert_count", "num_local_experts", also="num_experts"), _USED,
        Number("expert_feed_forward_length", "intermediate_size", otherwise="intermediate_size"),
        Number("attention.sliding_window", "sliding_window"), Fixed("attention_bias", True, None),
        Fixed("swiglu_limit", 7.0, None), Fixed("swiglu_alpha", 1.702, None),
    ),
)  # fmt: skip
GRANITE = Architecture(
    "granite", "granite", "GraniteForCausalLM",
    (*_outer(), *_LLAMA_NORMS, *_attention(True, "attention_bias", "attention_bias"), *_mlp("mlp_bias")),
    (*_SIZES, _RMS, HeadSize(None, written=False), Rope(), _SILU, *_SCALES),
)  # fmt: skip
GRANITE_MOE = Architecture(
    "granitemoe", "granitemoe", "GraniteMoeForCausalLM",
    (
        *_outer(), *_LLAMA_NORMS, *_attention(True, "attention_bias", "attention_bias"),
        *_experts("block_sparse_moe", "router"),
    ),
    (
        *_SIZES, _RMS, HeadSize(None, written=False), Rope(), _SILU, *_SCALES,
        Number("expert_count", "num_local_experts"), _USED,
    ),
)  # fmt: skip
OLMO2 = Architecture(
    "olmo2", "olmo2", "Olmo2ForCausalLM",
    (
        *_outer(), *_QK_NORMS, *_attention(), *_mlp(),
        *_norms(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm"),
    ),
    (*_SIZES, _RMS, HeadSize(None, written=False), Rope(), _SILU, _NO_BIAS),
)  # fmt: skip
STARCODER2 = Architecture(
    "starcoder2", "starcoder2", "Starcoder2ForCausalLM",
    (
        *_outer(bias=""), *_attention(qkv="use_bias", out="use_bias"),
        *_norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *_mlp("use_bias", False, "mlp.c_fc", "mlp.c_proj"),
    ),
    (
        *_SIZES, Number("attention.layer_norm_epsilon", "norm_epsilon", float), HeadSize(None, written=False), Rope(),
        Window(), Fixed("hidden_act", "gelu_pytorch_tanh", None),
    ),
)  # fmt: skip
STABLELM = Architecture(
    "stablelm", "stablelm", "StableLmForCausalLM",
    (
        *_outer(bias=""), *_attention(qkv="use_qkv_bias"), *_mlp(),
        *_norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
    ),
    (
        *_SIZES, Number("attention.layer_norm_epsilon", "layer_norm_eps", float), HeadSize(None, written=False),
        Rope(partial=True), _SILU, Fixed("qk_layernorm", False, None),
        WithoutTensor("use_parallel_residual", "blk.0.ffn_norm.weight", "use_parallel_residual"),
    ),
)  # fmt: skip
NEMOTRON = Architecture(
    "nemotron", "nemotron", "NemotronForCausalLM",
    (
        *_outer(shift=True, bias=""), *_attention(qkv="attention_bias", out="attention_bias"),
        *_norms(shift=True, bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        *_mlp("mlp_bias", gate=False),
    ),
    (
        *_SIZES, Number("attention.layer_norm_epsilon", "norm_eps", float), HeadSize(), Rope(partial=True),
        Constant("attention.layer_norm_rms_epsilon"), Fixed("hidden_act", "relu2", None),
    ),
)  # fmt: skip


def _block(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = "") -> Rows:
    return _tensor(f"blk.{{}}.{theirs}", f"transformer.h.{{}}.{ours}", operation, bias)


GPT2 = Architecture(
    "gpt2", "gpt2", "GPT2LMHeadModel",
    (
        *_outer("transformer.wte", "transformer.ln_f", bias=""), *_tensor("position_embd", "transformer.wpe"),
        *_block("attn_norm", "ln_1"), *_block("ffn_norm", "ln_2"), *_block("attn_qkv", "attn.c_attn", TURNED),
        *_block("attn_output", "attn.c_proj", TURNED), *_block("ffn_up", "mlp.c_fc", TURNED),
        *_block("ffn_down", "mlp.c_proj", TURNED),
    ),
    (
        Number("context_length", "n_positions"), Number("embedding_length", "n_embd"), Number("block_count", "n_layer"),
        Number("feed_forward_length", "n_inner", otherwise="n_embd", times=4),
        Number("attention.head_count", "n_head"), Constant("attention.head_count_kv"),
        Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float), Constant("rope.dimension_count"),
        Fixed("activation_function", "gelu_new", "gelu_pytorch_tanh", None), Fixed("scale_attn_weights", True, None),
        Fixed("scale_attn_by_inverse_layer_idx", False, None), Fixed("add_cross_attention", False, None),
    ),
    layers="n_layer",
)  # fmt: skip
BLOOM = Architecture(
    "bloom", "bloom", "BloomForCausalLM",
    (
        *_outer("transformer.word_embeddings", "transformer.ln_f", bias=""),
        *_tensor("token_embd_norm", "transformer.word_embeddings_layernorm", bias=""),
        *_block("attn_norm", "input_layernorm"), *_block("ffn_norm", "post_attention_layernorm"),
        *_block("attn_qkv", "self_attention.query_key_value", Permuted(by_heads)),
        *_block("attn_output", "self_attention.dense"), *_block("ffn_up", "mlp.dense_h_to_4h"),
        *_block("ffn_down", "mlp.dense_4h_to_h"),
    ),
    (
        Number("embedding_length", "hidden_size"), Number("block_count", "n_layer"),
        Number("attention.head_count", "n_head"), Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float),
        Number("context_length", "seq_length", otherwise="hidden_size"), Derived("attention.head_count_kv", "n_head"),
        Derived("feed_forward_length", "hidden_size", 4), Fixed("slow_but_exact", False, None, True),
        Fixed("apply_residual_connection_post_layernorm", False, None), Fixed("pretraining_tp", None, 0, 1),
    ),
    layers="n_layer",
)  # fmt: skip

_FALCON_ROWS = (
    *_outer("transformer.word_embeddings", "transformer.ln_f", bias=""),
    *_block("attn_qkv", "self_attention.query_key_value", Permuted(by_groups), "bias"),
    *_block("attn_output", "self_attention.dense", bias="bias"), *_block("ffn_up", "mlp.dense_h_to_4h", bias="bias"),
    *_block("ffn_down", "mlp.dense_4h_to_h", bias="bias"),
)  # fmt: skip
_FALCON = (
    Number("context_length", "max_position_embeddings", otherwise=2048), Number("embedding_length", "hidden_size"),
    _LAYERS, Number("attention.head_count", "num_attention_heads"),
    Number("attention.layer_norm_epsilon", "layer_norm_epsilon", float), HeadSize(None, written=False),
    Number("feed_forward_length", "ffn_hidden_size", otherwise="hidden_size", times=4), Rope(),
    Fixed("alibi", False, None), Fixed("parallel_attn", True, None), Fixed("activation", "gelu", None),
)  # fmt: skip
_ONE_NORM = _block("attn_norm", "input_layernorm")
# Falcon 40B: a norm for attention and one for the rest. Falcon 2: one norm. Falcon 7B: one key and value for all.
FALCON_TWO_NORMS = Architecture(
    "falcon", "falcon", "FalconForCausalLM",
    (*_FALCON_ROWS, *_block("attn_norm", "ln_mlp"), *_block("attn_norm_2", "ln_attn")),
    (
        Number("attention.head_count_kv", "num_kv_heads"), *_FALCON, Fixed("new_decoder_architecture", True),
        Fixed("num_ln_in_parallel_attn", 2, None), Fixed("multi_query", True, False, None),
    ),
    lambda values, names: "blk.0.attn_norm_2.weight" in names,
)  # fmt: skip
FALCON_ONE_NORM = Architecture(
    "falcon", "falcon", "FalconForCausalLM", (*_FALCON_ROWS, *_ONE_NORM),
    (
        Number("attention.head_count_kv", "num_kv_heads"), *_FALCON, Fixed("new_decoder_architecture", True),
        Fixed("num_ln_in_parallel_attn", 1), Fixed("multi_query", True, False, None),
    ),
    lambda values, names: str(values.get("falcon.attention.head_count_kv", 1)) != "1",
)  # fmt: skip
FALCON_ONE_KEY = Architecture(
    "falcon", "falcon", "FalconForCausalLM", (*_FALCON_ROWS, *_ONE_NORM),
    (
        Constant("attention.head_count_kv", 1, None), *_FALCON, Fixed("new_decoder_architecture", False, None),
        Fixed("multi_query", True, None), Fixed("num_ln_in_parallel_attn", None, 1),
    ),
)  # fmt: skip


def _mixer(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    return _tensor(f"blk.{{}}.{theirs}", f"backbone.layers.{{}}.{ours}", operation, bias)


MAMBA = Architecture(
    "mamba", "mamba", "MambaForCausalLM",
    (
        *_outer("backbone.embeddings", "backbone.norm_f"), *_mixer("attn_norm", "norm"),
        *_mixer("ssm_in", "mixer.in_proj"), *_mixer("ssm_out", "mixer.out_proj"), *_mixer("ssm_x", "mixer.x_proj"),
        *_mixer("ssm_dt", "mixer.dt_proj", bias=""), *_mixer("ssm_conv1d", "mixer.conv1d", Squeezed(1)),
        Row("backbone.layers.{}.mixer.conv1d.bias", ("blk.{}.ssm_conv1d.bias",), flag="use_conv_bias"),
        Row("backbone.layers.{}.mixer.A_log", ("blk.{}.ssm_a",), NEGATED_EXPONENTIAL),
        Row("backbone.layers.{}.mixer.D", ("blk.{}.ssm_d",)),
    ),
    (
        Number("embedding_length", "hidden_size"), _LAYERS, Number("ssm.conv_kernel", "conv_kernel"),
        Number("ssm.state_size", "state_size"), Number("ssm.time_step_rank", "time_step_rank"), Fixed("expand", 2),
        Derived("ssm.inner_size", "hidden_size", 2), Constant("ssm.dt_b_c_rms", False, None),
        Number("attention.layer_norm_rms_epsilon", "layer_norm_epsilon", float), Written("context_length", 1 << 20),
        Written("feed_forward_length", 0), Written("attention.head_count", 0), Fixed("use_bias", False, None),
        Fixed("hidden_act", "silu", None),
    ),
)  # fmt: skip


def _lfm2(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    return _tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.{ours}", operation, bias)


LFM2 = Architecture(
    "lfm2", "lfm2", "Lfm2ForCausalLM",
    (
        *_tensor("token_embd", "model.embed_tokens"), *_tensor("token_embd_norm", "model.embedding_norm"),
        *_tensor("output", "lm_head"), *_lfm2("attn_norm", "operator_norm"), *_lfm2("ffn_norm", "ffn_norm"),
        *_lfm2("attn_q", "self_attn.q_proj"), *_lfm2("attn_k", "self_attn.k_proj"),
        *_lfm2("attn_v", "self_attn.v_proj"), *_lfm2("attn_output", "self_attn.out_proj"),
        *_lfm2("attn_q_norm", "self_attn.q_layernorm"), *_lfm2("attn_k_norm", "self_attn.k_layernorm"),
        *_lfm2("ffn_gate", "feed_forward.w1"), *_lfm2("ffn_up", "feed_forward.w3"),
        *_lfm2("ffn_down", "feed_forward.w2"), *_lfm2("shortconv.conv", "conv.conv", Squeezed(1)),
        *_lfm2("shortconv.in_proj", "conv.in_proj"), *_lfm2("shortconv.out_proj", "conv.out_proj"),
    ),
    (
        Number("context_length", "max_position_embeddings"), Number("embedding_length", "hidden_size"), _LAYERS,
        AdjustedWidth(), Number("attention.head_count", "num_attention_heads"), ConvolutionLayers(),
        Number("attention.layer_norm_rms_epsilon", "norm_eps", float), Number("shortconv.l_cache", "conv_L_cache"),
        HeadSize(None, written=False), Rope(), Fixed("conv_bias", False, None),
    ),
)  # fmt: skip


def _linear(theirs: str, ours: str, operation: Operation = SAME) -> Rows:
    return _tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.linear_attn.{ours}", operation)


_VALUE_HEADS = Permuted(by_key_heads())
QWEN35 = Architecture(
    "qwen35", "qwen3_5_text", "Qwen3_5ForCausalLM",
    (
        *_outer(shift=True), *_attention(), *_mlp(),
        *_norms(
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
    ),
    (
        *_SIZES, _RMS, HeadSize(), SectionedRope(partial=True), LinearLayers(), _SILU, _NO_BIAS,
        Number("ssm.conv_kernel", "linear_conv_kernel_dim"), Number("ssm.state_size", "linear_key_head_dim"),
        Number("ssm.group_count", "linear_num_key_heads"), Number("ssm.time_step_rank", "linear_num_value_heads"),
        EachHead("ssm.inner_size", "linear_value_head_dim", "linear_num_value_heads"),
    ),
)  # fmt: skip

ARCHITECTURES = (
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, GEMMA, GEMMA2, GEMMA3, PHI3, GPT_OSS, GRANITE,
    GRANITE_MOE, OLMO2, STARCODER2, STABLELM, NEMOTRON, GPT2, BLOOM, FALCON_TWO_NORMS, FALCON_ONE_NORM, FALCON_ONE_KEY,
    MAMBA, LFM2, QWEN35,
)  # fmt: skip
KNOWN = tuple(dict.fromkeys(architecture.gguf for architecture in ARCHITECTURES))


def of_file(metadata: Mapping[str, Any], names: Collection[str]) -> Architecture | None:
    """Return the architecture of a GGUF file with this metadata and these names of tensors."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        return None
    return next((each for each in ARCHITECTURES if each.gguf == name and each.chosen(metadata, names)), None)


def of_config(config: Mapping[str, Any]) -> list[Architecture]:
    """Return the architectures that a model of this config may be; the one whose entries fit is it."""
    return [each for each in ARCHITECTURES if each.model_type == config.get("model_type")]
