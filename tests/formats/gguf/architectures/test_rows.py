"""The rows that architectures share: which names they join, which operations, and whose biases."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.architecture import Row
from aibit_format.formats.gguf.architectures.rows import attention, experts, mlp, norms, outer, shared_experts, tensor
from aibit_format.formats.gguf.operations import JOINED, SAME, SHIFTED, TURNED

CONFIG = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}


def pairs(rows):
    """Their names by ours; of several parts, all."""
    return {row.name: " ".join(row.parts) for row in rows}


def test_a_bias_goes_with_its_weight_and_has_nothing_to_turn():
    assert tensor("a", "b") == (Row("b.weight", ("a.weight",)),)
    assert tensor("a", "b", TURNED, "with_bias") == (
        Row("b.weight", ("a.weight",), TURNED), Row("b.bias", ("a.bias",), SAME, "with_bias"),
    )  # fmt: skip
    # Without a key that gives them, biases are always there.
    assert tensor("a", "b", SHIFTED, "")[1] == Row("b.bias", ("a.bias",), SHIFTED, None)


def test_outside_the_layers_are_embeddings_a_norm_and_a_head():
    assert pairs(outer()) == {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    shifted = outer("e", "n", "h", shift=True, bias="")
    assert [(row.name, row.operation) for row in shifted] == [
        ("e.weight", SAME), ("n.weight", SHIFTED), ("n.bias", SAME), ("h.weight", SAME),
    ]  # fmt: skip


def test_norms_are_of_each_layer_and_only_their_weights_are_shifted():
    found = norms(shift=True, bias=True, attn_norm="before")
    assert pairs(found) == {
        "model.layers.{}.before.weight": "blk.{}.attn_norm.weight",
        "model.layers.{}.before.bias": "blk.{}.attn_norm.bias",
    }
    assert [row.operation for row in found] == [SHIFTED, SAME]


def test_queries_and_keys_alone_have_the_order_of_llama_cpp():
    rows = {row.parts[0].removeprefix("blk.{}."): row for row in attention(rotated=True, qkv="b")}
    moved = {name: row.operation for name, row in rows.items() if row.operation is not SAME}
    assert moved.keys() == {"attn_q.weight", "attn_q.bias", "attn_k.weight", "attn_k.bias"}
    queries, keys = (moved[name].joined([shape], CONFIG) for name, shape in
                     (("attn_q.weight", (8, 3)), ("attn_k.weight", (4, 3))))  # fmt: skip
    assert (queries, keys) == ((8, 3), (4, 3))
    with pytest.raises(SourceError):  # each by its own number of heads
        moved["attn_k.weight"].joined([(8, 3)], CONFIG)
    assert {name for name, row in rows.items() if row.flag == "b"} == {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
    assert "attn_output.bias" not in rows and "attn_output.bias" in str(pairs(attention(out="b")))
    assert all(row.operation is SAME for row in attention())


def test_a_network_may_have_no_gate():
    assert [row.parts[0] for row in mlp(gate=False, up="fc1", down="fc2")] == [
        "blk.{}.ffn_up.weight", "blk.{}.ffn_down.weight",
    ]  # fmt: skip
    assert [row.flag for row in mlp("b")] == [None, "b"] * 3


def test_experts_are_stacked_and_their_gate_and_up_one_or_two():
    rows = experts("moe", "router")
    assert [(row.name.removeprefix("model.layers.{}.moe."), len(row.parts), row.operation) for row in rows] == [
        ("experts.gate_up_proj", 2, JOINED), ("experts.gate_up_proj", 1, SAME), ("experts.down_proj", 1, SAME),
        ("router.weight", 1, SAME),
    ]  # fmt: skip
    assert rows[0].operation.joined([(2, 3, 4), (2, 3, 4)], {}) == (2, 6, 4)
    assert pairs(shared_experts("one"))["model.layers.{}.mlp.one.up_proj.weight"] == "blk.{}.ffn_up_shexp.weight"
