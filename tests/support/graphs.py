"""Make small decoders with graphs, and graphs by hand, for tests of both."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
import transformers

import aibit_format as aibit
from aibit_format import schemes

_SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OWN = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 2},
}
IDS = torch.tensor([[1, 17, 30, 42, 7, 9, 51, 23, 99, 5, 4, 77]])


def save(family, folder, dtype=torch.bfloat16):
    """Write a small decoder of random weights, large enough that texts differ."""
    base = transformers.AutoConfig.for_model(family)
    sizes = {key: value for key, value in _SIZES.items() if hasattr(base, key)} | _OWN.get(family, {})
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    model.save_pretrained(folder)


def converted(family, folder, scheme="int4-group,group=32", dtype=torch.bfloat16):
    """Return the path of a small decoder's file, without a graph."""
    save(family, folder / "hf", dtype)
    aibit.convert(folder / "hf", folder / "m.aibit", scheme)
    return folder / "m.aibit"


def recorded(family, folder, scheme="int4-group,group=32", dtype=torch.bfloat16):
    """Return the path of a small decoder's file with its graph."""
    aibit.add_graph(converted(family, folder, scheme, dtype), folder / "g.aibit")
    return folder / "g.aibit"


def node(operator, operands, dtype, sizes, /, **attributes):
    """Return a node as a document has it."""
    return {"operator": operator, "operands": operands, "attributes": attributes, "dtype": dtype, "shape": sizes}


def tensor(name, shape, dtype="bf16", scheme=None, transposed=False):
    """Return what ``check`` reads of a tensor of a file."""
    made = schemes.make(scheme or dtype)
    return SimpleNamespace(name=name, shape=tuple(shape), dtype=dtype, scheme=made, transposed=transposed)


TENSORS = {
    each.name: each
    for each in (
        tensor("embed", (160, 64), scheme="int8"), tensor("norm", (64,)), tensor("q", (64, 64), scheme="int8"),
        tensor("k", (32, 64), scheme="int8"), tensor("v", (32, 64)), tensor("bias", (32,)),
        tensor("wide", (64,), "f32"), tensor("turned", (64, 64), transposed=True), tensor("count", (64,), "i64"),
        tensor("head", (160, 64)),
    )
}  # fmt: skip


def document():
    """Return a document by hand that uses an operator of each kind, and is one of ``TENSORS``."""
    token, heads, groups = [1, "s", 64], [1, 4, "s", 16], [1, 2, "s", 16]
    nodes = [
        node("embedding", [0, {"tensor": "embed"}], "bf16", token),  # 2
        node("rms_norm", [2, {"tensor": "norm"}], "bf16", token, epsilon=1e-5, offset=0.0, rounds=True),  # 3
        node("linear", [3, {"tensor": "q"}], "bf16", token),  # 4
        node("linear", [3, {"tensor": "k"}, {"tensor": "bias"}], "bf16", [1, "s", 32]),  # 5
        node("linear", [3, {"tensor": "v"}], "bf16", [1, "s", 32]),  # 6
        node("reshape", [4], "bf16", [1, "s", 4, 16], shape=[1, "s", 4, 16]),  # 7
        node("transpose", [7], "bf16", heads, first=1, second=2),  # 8
        node("reshape", [5], "bf16", [1, "s", 2, 16], shape=[1, "s", 2, 16]),  # 9
        node("transpose", [9], "bf16", groups, first=1, second=2),  # 10
        node("reshape", [6], "bf16", [1, "s", 2, 16], shape=[1, "s", 2, 16]),  # 11
        node("transpose", [11], "bf16", groups, first=1, second=2),  # 12
        node("unsqueeze", [1], "i64", [1, 1, "s"], dimension=1),  # 13
        node("cast", [13], "f32", [1, 1, "s"], dtype="f32"),  # 14
        node("matmul", [{"constant": 0}, 14], "f32", [1, 8, "s"]),  # 15
        node("transpose", [15], "f32", [1, "s", 8], first=1, second=2),  # 16
        node("cat", [16, 16], "f32", [1, "s", 16], dimension=2),  # 17
        node("cos", [17], "f32", [1, "s", 16]),  # 18
        node("sin", [17], "f32", [1, "s", 16]),  # 19
        node("cast", [18], "bf16", [1, "s", 16], dtype="bf16"),  # 20
        node("cast", [19], "bf16", [1, "s", 16], dtype="bf16"),  # 21
        node("unsqueeze", [20], "bf16", [1, 1, "s", 16], dimension=1),  # 22
        node("unsqueeze", [21], "bf16", [1, 1, "s", 16], dimension=1),  # 23
        node("rotary", [8, 22, 23], "bf16", heads),  # 24
        node("rotary", [10, 22, 23], "bf16", groups),  # 25
        node("attention", [24, 25, 12], "bf16", [1, "s", 4, 16], layer=0, scale=0.25, window=0, cap=0.0),  # 26
        node("reshape", [26], "bf16", token, shape=token),  # 27
        node("add", [2, 27], "bf16", token),  # 28
        node("mul", [28], "bf16", token, other=0.5),  # 29
        node("gated", [29, 28], "bf16", token, activation="silu"),  # 30
        node("slice", [30], "bf16", [1, "s", 32], dimension=2, start=0, stop=32),  # 31
        node("cat", [31, 31], "bf16", token, dimension=2),  # 32
        node("last", [32], "bf16", [1, "k", 64]),  # 33
        node("linear", [33, {"tensor": "head"}], "bf16", [1, "k", 160]),  # 34
    ]
    constants = [{"shape": [1, 8, 1], "values": [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]}]
    return {"version": 1, "made_with": {"torch": "2.13"}, "positions": 64, "constants": constants, "nodes": nodes}


def encoded(value):
    """Return a document's bytes."""
    return json.dumps(value).encode()
