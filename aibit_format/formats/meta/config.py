"""Makes the config of a Llama from Meta's ``params.json``, as transformers' ``convert_llama_weights_to_hf.py`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .params import Params

KNOWN = frozenset({
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "max_batch_size", "max_seq_len", "model_parallel_size",
})  # fmt: skip
REFUSED = {
    "quantization_args": "says that weights are quantized for one program: convert the model as it was before",
    "lora_args": "says that there are adapters: merge them first",
    "moe_args": "belongs to Llama 4, which is not read here: convert the checkpoint for transformers",
    **dict.fromkeys(("vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers"),
                    "belongs to a model that sees, which is not read here: convert the checkpoint for transformers"),
}  # fmt: skip
_THETA = 10000.0
# The rotation of Llama 3.1 and later; models with tied embeddings, those of 3.2, stretch it further.
_SCALED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_FACTOR, _FACTOR_OF_TIED = 8.0, 32.0
_LLAMA_3 = 128000  # tokens, or more
# What a model was trained for, in tokens, is not in the file, and has no influence on what is computed.
_CONTEXT_SCALED, _CONTEXT_3, _CONTEXT_CODE, _CONTEXT_2, _CONTEXT_1 = 131072, 8192, 16384, 4096, 2048
_EPSILON_1 = 1e-6  # of Llama 1


def decoder_sizes(params: Params, head: int | None = None) -> dict[str, int]:
    """Return the sizes of a decoder's attention; ``head`` is that of a head, if it is not the share of ``dim``.

    Raises:
        SourceError: heads have no even size, or do not share keys.
    """
    hidden, heads = params.count("dim"), params.count("n_heads")
    key_heads = params.count("n_kv_heads", heads)
    if head is None and hidden % heads:
        raise params.error("n_heads", heads, f"a divisor of dim, {hidden}")
    head = head or hidden // heads
    if head % 2:
        raise params.error("n_heads", heads, f"heads of an even size, not {head}")
    if heads % key_heads:
        raise params.error("n_kv_heads", key_heads, f"a divisor of n_heads, {heads}")
    return {
        "hidden": hidden, "heads": heads, "key_heads": key_heads, "head": head, "queries": heads * head,
        "keys": key_heads * head,
    }  # fmt: skip


def intermediate_size(params: Params) -> int:
    """Return the size of the MLP: two thirds of 4 * dim, times a factor, rounded up to a multiple."""
    multiple, factor = params.count("multiple_of", 256), params.number("ffn_dim_multiplier", 1.0)
    return multiple * -(-int(factor * (8 * params.count("dim") // 3)) // multiple)


def config_of(params: Params, sizes: Mapping[str, int], tied: bool) -> dict[str, Any]:
    """Return what ``config.json`` says of the model."""
    theta, scaled = params.number("rope_theta", _THETA), params.flag("use_scaled_rope")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaled:
        rope |= {"rope_type": "llama3", "factor": _FACTOR_OF_TIED if tied else _FACTOR, **_SCALED}
    epsilon = params.number("norm_eps")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "num_hidden_layers": params.count("n_layers"),
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["key_heads"],
        "vocab_size": sizes["vocabulary"],
        "rms_norm_eps": epsilon,
        "rope_parameters": rope,
        "max_position_embeddings": _context(sizes["vocabulary"], theta, scaled, epsilon),
        "tie_word_embeddings": tied,
    }


def _context(vocabulary: int, theta: float, scaled: bool, epsilon: float) -> int:
    if scaled:
        return _CONTEXT_SCALED
    if vocabulary >= _LLAMA_3:
        return _CONTEXT_3
    if theta > _THETA:
        return _CONTEXT_CODE
    return _CONTEXT_1 if epsilon == _EPSILON_1 else _CONTEXT_2
