"""Keeps keys and values of a sequence, and attends to them."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..kernels import operators
from ..kernels.matmul import fast_dtype

_LEAST = 256  # positions of the first memory


class Cache:
    """Holds the keys and values of one layer for one sequence: [1, heads, room, elements] each.

    Memory grows with the sequence, up to ``most`` positions.
    """

    __slots__ = ("key", "most", "value")

    def __init__(self, most: int) -> None:
        self.most = most
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def append(self, first: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values [1, heads, tokens, elements] at positions from ``first`` on; return all memory."""
        keys, values = self.room(first, key.transpose(1, 2), value.transpose(1, 2))
        keys[:, :, first : first + key.shape[2]] = key
        values[:, :, first : first + key.shape[2]] = value
        return keys, values

    def room(self, first: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return memory for positions up to ``first`` and those of key and value, [1, tokens, heads, elements]."""
        if self.key is None or self.value is None or self.key.shape[2] < first + key.shape[1]:
            self.key, self.value = self._larger(self.key, key, first), self._larger(self.value, value, first)
        return self.key, self.value

    def _larger(self, old: torch.Tensor | None, new: torch.Tensor, first: int) -> torch.Tensor:
        _, tokens, heads, elements = new.shape
        made = new.new_zeros(1, heads, min(self.most, max(_LEAST, 2 * (first + tokens))), elements)
        if old is not None:
            made[:, :, :first] = old[:, :, :first]
        return made


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: int, scale: float, window: int, cap: float
) -> torch.Tensor:
    """Attend from the positions from ``first`` on to all up to each: [1, tokens, heads, elements of values].

    Args:
        query: [1, heads, tokens, elements].
        key, value: [1, heads of keys, room, elements], of which the positions before ``first`` + tokens are used.
    """
    tokens = query.shape[2]
    count = first + tokens
    if tokens == 1 and operators.attends(query, key, value):
        return operators.attend(query, key, value, scale, count, cap, window)
    key, value, dtype = key[:, :, :count], value[:, :, :count], query.dtype
    wide = fast_dtype(dtype) if query.device.type == "cpu" else dtype
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    allowed = None
    if tokens > 1 and (first or (window and window < count)):
        places = torch.arange(count, device=query.device)
        mine = places[first:, None]
        allowed = places <= mine
        if window:
            allowed &= places > mine - window
    elif window and window < count:
        key, value = key[:, :, -window:], value[:, :, -window:]
    if cap:
        found = _capped(query, key, value, scale, cap, allowed, tokens)
    else:
        found = scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=tokens > 1 and allowed is None, scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    return found.to(dtype).transpose(1, 2).contiguous()


def attend_to_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, cap: float
) -> torch.Tensor:
    """Attend to all tokens, in both directions; arguments and result as for ``attend``."""
    dtype = query.dtype
    wide = fast_dtype(dtype) if query.device.type == "cpu" else dtype
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    if cap:
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        found = _capped(query, key, value, scale, cap, allowed, query.shape[2])
    else:
        found = scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return found.to(dtype).transpose(1, 2).contiguous()


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, cap: float,
    allowed: torch.Tensor | None, tokens: int,
) -> torch.Tensor:  # fmt: skip
    """Attend with scores that become cap * tanh(score / cap), as Gemma 2 does."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3) * scale / cap).tanh() * cap
    if tokens > 1:
        allowed = torch.ones(tokens, key.shape[2], dtype=torch.bool).tril() if allowed is None else allowed
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
