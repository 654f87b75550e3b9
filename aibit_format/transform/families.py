"""Lists the families of decoders of which it is known which weights read what other weights write.

``tests/transform/test_structure.py`` folds random factors into a small model of each and compares the logits. A family
that is not listed is refused: names alone do not say what the code between two weights does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Describe the layers of a family by the names of its modules, relative to a layer.

    Attributes:
        attention_norm, mlp_norm: the norms whose output attention and MLP read; ``None`` if they read the residual
            stream as it is, or a norm that has no weights.
        ends: norms of what attention and MLP write, before it is added to the residual stream.
        gain: what is added to the weight of a norm before it multiplies: 1 for Gemma.
        centred: whether norms subtract the mean, as LayerNorm does.
        gated: whether the MLP is ``down(act(gate(x)) * up(x))``, in which ``up`` is linear up to ``down``.
    """

    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    ends: tuple[str, ...] = ()
    gain: float = 0.0
    centred: bool = False
    gated: bool = True


_PLAIN = Family()
_AFTER = Family(None, None, ends=("post_attention_layernorm", "post_feedforward_layernorm"))
_BOTH = Family(
    mlp_norm="pre_feedforward_layernorm", ends=("post_attention_layernorm", "post_feedforward_layernorm"), gain=1.0
)

# Model type of a config -> its family.
FAMILIES: dict[str, Family] = {
    "llama": _PLAIN, "mistral": _PLAIN, "ministral": _PLAIN, "ministral3": _PLAIN, "mixtral": _PLAIN,
    "qwen2": _PLAIN, "qwen2_moe": _PLAIN, "qwen3": _PLAIN, "qwen3_moe": _PLAIN,
    "phi3": _PLAIN, "smollm3": _PLAIN, "olmoe": _PLAIN, "granite": _PLAIN, "granitemoe": _PLAIN, "helium": _PLAIN,
    "glm": _PLAIN, "seed_oss": _PLAIN, "cwm": _PLAIN, "ernie4_5": _PLAIN, "hunyuan_v1_dense": _PLAIN,
    "arcee": Family(gated=False),
    "gemma": Family(gain=1.0),
    "vaultgemma": Family(mlp_norm="pre_feedforward_layernorm", gain=1.0),
    "gemma2": _BOTH, "gemma3_text": _BOTH,
    "glm4": Family(ends=("post_self_attn_layernorm", "post_mlp_layernorm")),
    "olmo2": _AFTER, "olmo3": _AFTER, "exaone4": _AFTER,
    "olmo": Family(None, None, centred=True),
    "stablelm": Family(centred=True),
}  # fmt: skip

# Keys of a config that put more between two weights, where they are set: clamped values; one norm for both.
UNLESS = ("clip_qkv", "use_parallel_residual")

# Names of modules and parameters in the layers of all families, relative to a layer.
ATTENTION_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj")
VALUES, FUSED_VALUES, ATTENTION_WRITES = "self_attn.v_proj", "self_attn.qkv_proj", "self_attn.o_proj"
MLP_READS = (
    "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj",
    "mlp.gate", "mlp.experts.gate_up_proj", "block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj",
    "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate",
)  # fmt: skip
# What is multiplied with the activated gate, beside the gate where that is another weight; and what reads the product.
GATED = (
    ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"),
    ("mlp.gate_up_proj", None, "mlp.down_proj"),
    ("mlp.shared_expert.up_proj", "mlp.shared_expert.gate_proj", "mlp.shared_expert.down_proj"),
    ("mlp.experts.gate_up_proj", None, "mlp.experts.down_proj"),
    ("block_sparse_moe.experts.gate_up_proj", None, "block_sparse_moe.experts.down_proj"),
)
MLP_WRITES = tuple(dict.fromkeys(reader for _, _, reader in GATED))
# Norms of queries and keys, after which nothing of the residual stream's basis is left.
BESIDE = ("self_attn.q_norm", "self_attn.k_norm", "self_attn.query_layernorm", "self_attn.key_layernorm")
