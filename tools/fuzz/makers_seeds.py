"""Make the directories that fuzzing of the makers' own checkpoints begins with: Meta's and Mistral's, of one layer."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

_WIDTH, _INNER, _HEADS, _KEYS = 8, 16, 2, 1
_RANKS, _SPECIAL, _METAS_SPECIAL = 258, 3, 256  # tokens of bytes, and others of either maker
_SIZES = {"attention.wq": (8, 8), "attention.wk": (4, 8), "attention.wv": (4, 8), "attention.wo": (8, 8)}
_MLP = {"w1": (_INNER, _WIDTH), "w2": (_WIDTH, _INNER), "w3": (_INNER, _WIDTH)}


def checkpoints() -> dict[str, dict[str, bytes]]:
    """Return the files of each directory, by its name."""
    meta = {"dim": _WIDTH, "n_layers": 1, "n_heads": _HEADS, "n_kv_heads": _KEYS, "norm_eps": 1e-5, "multiple_of": 16,
            "ffn_dim_multiplier": 0.5, "vocab_size": _RANKS + _METAS_SPECIAL, "rope_theta": 500000.0}  # fmt: skip
    mistral = {"dim": _WIDTH, "n_layers": 1, "head_dim": 4, "hidden_dim": _INNER, "n_heads": _HEADS,
               "n_kv_heads": _KEYS, "norm_eps": 1e-5, "vocab_size": _RANKS + _SPECIAL, "rope_theta": 1e6}  # fmt: skip
    experts = {"moe": {"num_experts": 2, "num_experts_per_tok": 1}}
    return {
        "llama": {
            "params.json": _json(meta), "tokenizer.model": _ranks(),
            "consolidated.00.pth": _saved(_tensors(_METAS_SPECIAL)),
        },
        "llama-parts": {
            "params.json": _json(meta), **{f"consolidated.0{i}.pth": _saved(_half(i)) for i in range(2)},
        },
        "mistral": {
            "params.json": _json(mistral), "consolidated.safetensors": _safetensors(_tensors(_SPECIAL)),
            "tekken.json": _tekken(),
        },
        "mixtral": {
            "params.json": _json(mistral | experts),
            "consolidated.safetensors": _safetensors(_tensors(_SPECIAL, experts=2)),
        },
    }  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tensors(special: int, experts: int = 0) -> dict[str, Any]:
    import torch

    layer = {f"{name}.weight": torch.zeros(size, dtype=torch.bfloat16) for name, size in _SIZES.items()}
    layer |= {f"{name}.weight": torch.ones(_WIDTH, dtype=torch.bfloat16) for name in ("attention_norm", "ffn_norm")}
    places = [f"feed_forward.experts.{i}" for i in range(experts)] or ["feed_forward"]
    for place in places:
        layer |= {f"{place}.{name}.weight": torch.zeros(size, dtype=torch.bfloat16) for name, size in _MLP.items()}
    if experts:
        layer["feed_forward.gate.weight"] = torch.zeros(experts, _WIDTH, dtype=torch.bfloat16)
    table = torch.zeros(_RANKS + special, _WIDTH, dtype=torch.bfloat16)
    ends = {"tok_embeddings.weight": table, "output.weight": table.clone()}
    ends["norm.weight"] = torch.ones(_WIDTH, dtype=torch.bfloat16)
    return {f"layers.0.{name}": value for name, value in layer.items()} | ends


def _half(part: int) -> dict[str, Any]:
    """Return a half of every matrix, along the dimension that Meta cuts it."""
    found = {}
    for name, value in _tensors(_METAS_SPECIAL).items():
        axis = int(".wo." in name or ".w2." in name)
        found[name] = value.chunk(2, axis)[part].clone() if value.ndim == 2 else value
    return found


def _saved(tensors: dict[str, Any]) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def _safetensors(tensors: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _ranks() -> bytes:
    """Return a file of ranks: a line for each token, its bytes in base64 and its number."""
    tokens = [bytes([i]) for i in range(256)] + [b"ab", b"abc"]
    return b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


def _tekken() -> bytes:
    tokens = [base64.b64encode(bytes([i])).decode() for i in range(256)] + ["YWI=", "YWJj"]
    vocabulary = [{"rank": i, "token_bytes": token, "token_str": None} for i, token in enumerate(tokens)]
    special = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    config = {"pattern": "[a-z]+|.", "num_vocab_tokens": _RANKS, "default_vocab_size": _RANKS + _SPECIAL,
              "default_num_special_tokens": _SPECIAL, "version": "v3"}  # fmt: skip
    return _json({"config": config, "vocab": vocabulary, "special_tokens": special})
