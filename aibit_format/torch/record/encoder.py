"""Calls an encoder with ids and positions alone, so that it can be recorded."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ...errors import GraphError

_EXAMPLE = 7  # tokens


def encoder_of(model: Any) -> nn.Module:
    """Return a module that computes what an encoder does of ids and positions, both i64 [1, tokens], of one segment.

    Raises:
        GraphError: it is no such model, or computes something else of them than of ids alone.
    """
    made = _Encoder(model)
    known = inspect.signature(model.forward).parameters
    if "input_ids" not in known:
        raise GraphError(f"{type(model).__name__} is neither a decoder that generates text nor an encoder of tokens")
    ids = torch.arange(_EXAMPLE)[None] % 3 + 2 + int(getattr(model.config, "pad_token_id", None) or 0)
    with torch.inference_mode():
        wanted, found = _state(model(input_ids=ids)), made.whole(ids, torch.arange(_EXAMPLE)[None])
    if wanted is None or not torch.allclose(wanted, found, rtol=1e-2, atol=1e-2):
        raise GraphError(f"{type(model).__name__}: it is not known how its positions count")
    return made


class _Encoder(nn.Module):
    """Computes the states of all tokens, of which the recorder takes as many as are wanted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        self._has_positions, self._has_types = "position_ids" in known, "token_type_ids" in known
        offsets = {each.padding_idx for each in model.modules() if type(each).__name__.endswith("Embeddings")
                   and isinstance(getattr(each, "padding_idx", None), int)}  # fmt: skip
        self._first = offsets.pop() + 1 if len(offsets) == 1 else 0  # RoBERTa's positions begin behind its padding

    def whole(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the states of all tokens."""
        given = {"position_ids": positions + self._first} if self._has_positions else {}
        if self._has_types:
            given["token_type_ids"] = ids * 0
        found = _state(self.model(input_ids=ids, **given))
        if found is None:
            raise GraphError(f"{type(self.model).__name__} gives neither states nor logits of its tokens")
        return found

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.whole(ids, positions)[:, -1:]


def _state(output: Any) -> torch.Tensor | None:
    found = getattr(output, "logits", None)
    found = getattr(output, "last_hidden_state", None) if found is None else found
    return found if found is not None and found.dim() == 3 else None
