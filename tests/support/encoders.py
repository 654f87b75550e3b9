"""Make small encoders with graphs."""

from __future__ import annotations

import torch
import transformers

import aibit_format as aibit

_SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_OWN = {
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "electra": {"embedding_size": 64}, "albert": {"embedding_size": 32},
}  # fmt: skip
NAMES = ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert"]
IDS = torch.tensor([[5, 16, 7, 82, 9, 3, 150]])


def recorded(family, folder, scheme="int8", dtype=torch.float32, kind=transformers.AutoModel):
    """Return the path of a small encoder's file with its graph."""
    base = transformers.AutoConfig.for_model(family)
    own = _OWN.get(family, {})
    sizes = {key: value for key, value in _SIZES.items() if hasattr(base, key) and "dim" not in own} | own
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes)
    kind.from_config(config, dtype=dtype).eval().save_pretrained(folder / "hf")
    aibit.convert(folder / "hf", folder / "m.aibit", scheme)
    aibit.add_graph(folder / "m.aibit", folder / "g.aibit", positions=48)
    return folder / "g.aibit"
