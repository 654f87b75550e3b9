"""Lists the tensors of a decoder in makers' names, with transformers' names for them and their shapes.

Queries and keys are stored for positions that rotate neighbouring elements, as complex numbers; transformers rotates
those that are half a head apart. So the rows of each head move: the even ones come first. That is ``permute`` of
``convert_llama_weights_to_hf.py`` in transformers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_NUMBER = re.compile(r"(?<=\.)(\d{1,9})(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Row:
    """Describe a module: its name, with ``{}`` for numbers, transformers' name, and the shape of its weight.

    Sizes are numbers, or names of sizes; ``heads`` names the number of heads whose rows move.
    """

    name: str
    target: str
    shape: tuple[str | int, ...]
    heads: str | None = None


DECODER = (
    Row("tok_embeddings", "model.embed_tokens", ("vocabulary", "hidden")),
    Row("norm", "model.norm", ("hidden",)),
    Row("output", "lm_head", ("vocabulary", "hidden")),
    Row("layers.{}.attention_norm", "model.layers.{}.input_layernorm", ("hidden",)),
    Row("layers.{}.ffn_norm", "model.layers.{}.post_attention_layernorm", ("hidden",)),
    Row("layers.{}.attention.wq", "model.layers.{}.self_attn.q_proj", ("queries", "hidden"), "heads"),
    Row("layers.{}.attention.wk", "model.layers.{}.self_attn.k_proj", ("keys", "hidden"), "key_heads"),
    Row("layers.{}.attention.wv", "model.layers.{}.self_attn.v_proj", ("keys", "hidden")),
    Row("layers.{}.attention.wo", "model.layers.{}.self_attn.o_proj", ("hidden", "queries")),
)  # fmt: skip
MLP = (
    Row("layers.{}.feed_forward.w1", "model.layers.{}.mlp.gate_proj", ("intermediate", "hidden")),
    Row("layers.{}.feed_forward.w2", "model.layers.{}.mlp.down_proj", ("hidden", "intermediate")),
    Row("layers.{}.feed_forward.w3", "model.layers.{}.mlp.up_proj", ("intermediate", "hidden")),
)


def numbered(name: str) -> tuple[str, list[str]]:
    """Return a name with ``{}`` in the place of its numbers, and these."""
    return _NUMBER.sub("{}", name), _NUMBER.findall(name)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Move the even rows of each head before the odd ones.

    Args:
        rows: [heads * size, ...].
        heads: their number.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows.shape)
