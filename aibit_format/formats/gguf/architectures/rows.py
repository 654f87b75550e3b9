"""Makes the rows that architectures share; GGUF's names are *theirs*, transformers' are *ours*."""

from __future__ import annotations

from ..architecture import Row
from ..operations import JOINED, SAME, SHIFTED, TURNED, Operation, rotary

Rows = tuple[Row, ...]


def tensor(theirs: str, ours: str, operation: Operation = SAME, bias: str | None = None) -> Rows:
    """Return the row of a weight, and that of its bias: ``bias`` is the config's key that gives one, or ``""``."""
    weight = Row(f"{ours}.weight", (f"{theirs}.weight",), operation)
    if bias is None:
        return (weight,)
    move = SAME if operation is TURNED else operation
    return (weight, Row(f"{ours}.bias", (f"{theirs}.bias",), move, bias or None))


def outer(embeddings: str = "model.embed_tokens", norm: str = "model.norm", head: str = "lm_head", shift: bool = False,
          bias: str | None = None) -> Rows:  # fmt: skip
    """Return the rows of what is outside the layers: embeddings, the last norm and the head."""
    return (
        *tensor("token_embd", embeddings),
        *tensor("output_norm", norm, SHIFTED if shift else SAME),
        *((Row(f"{norm}.bias", ("output_norm.bias",)),) if bias is not None else ()),
        *tensor("output", head),
    )


def norm(theirs: str, ours: str, shift: bool = False, bias: bool = False) -> Rows:
    """Return the rows of a norm; ``shift``: transformers adds one to its weights."""
    found = tensor(f"blk.{{}}.{theirs}", f"model.layers.{{}}.{ours}", SHIFTED if shift else SAME)
    return (*found, Row(f"model.layers.{{}}.{ours}.bias", (f"blk.{{}}.{theirs}.bias",))) if bias else found


def norms(shift: bool = False, bias: bool = False, **names: str) -> Rows:
    """Return the rows of several norms: their names and ours."""
    return tuple(row for theirs, ours in names.items() for row in norm(theirs, ours, shift, bias))


def attention(rotated: bool = False, qkv: str | None = None, out: str | None = None) -> Rows:
    """Return the rows of q, k, v and o; ``rotated``: with llama.cpp's order of rows. ``qkv``, ``out``: their biases."""
    query, key = ("num_attention_heads", "num_key_value_heads")
    inner = "model.layers.{}.self_attn."
    return (
        *tensor("blk.{}.attn_q", f"{inner}q_proj", rotary(query) if rotated else SAME, qkv),
        *tensor("blk.{}.attn_k", f"{inner}k_proj", rotary(key) if rotated else SAME, qkv),
        *tensor("blk.{}.attn_v", f"{inner}v_proj", SAME, qkv),
        *tensor("blk.{}.attn_output", f"{inner}o_proj", SAME, out),
    )


def mlp(bias: str | None = None, gate: bool = True, up: str = "mlp.up_proj", down: str = "mlp.down_proj") -> Rows:
    """Return the rows of a feed-forward network."""
    return (
        *(tensor("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj", SAME, bias) if gate else ()),
        *tensor("blk.{}.ffn_up", f"model.layers.{{}}.{up}", SAME, bias),
        *tensor("blk.{}.ffn_down", f"model.layers.{{}}.{down}", SAME, bias),
    )


def stacks(place: str) -> Rows:
    """Return the rows of stacked experts. transformers joins their gate and up, and so do some newer files."""
    inner = f"model.layers.{{}}.{place}."
    return (
        Row(f"{inner}gate_up_proj", ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"), JOINED),
        Row(f"{inner}gate_up_proj", ("blk.{}.ffn_gate_up_exps.weight",)),
        Row(f"{inner}down_proj", ("blk.{}.ffn_down_exps.weight",)),
    )


def experts(place: str = "mlp", router: str = "gate") -> Rows:
    """Return the rows of stacked experts and of what chooses among them."""
    return (*stacks(f"{place}.experts"), *tensor("blk.{}.ffn_gate_inp", f"model.layers.{{}}.{place}.{router}"))


def shared_experts(ours: str) -> Rows:
    """Return the rows of the experts that every token goes through, as one network."""
    inner = f"model.layers.{{}}.mlp.{ours}."
    return (
        *tensor("blk.{}.ffn_gate_shexp", f"{inner}gate_proj"), *tensor("blk.{}.ffn_up_shexp", f"{inner}up_proj"),
        *tensor("blk.{}.ffn_down_shexp", f"{inner}down_proj"),
    )  # fmt: skip


LLAMA_NORMS = norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
QK_NORMS = norms(attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
