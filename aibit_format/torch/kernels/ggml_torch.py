"""Implements ``ggml_layout.Operations`` with torch: the schemes' own decoders run on whatever device the blocks are.

torch does little with unsigned integers of more than a byte, so words are int64 here, and wide codes int32.
"""

from __future__ import annotations

import numpy as np
import torch


def spread(data: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """Unpack codes in GGML's order."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)[:, None]
    groups = data.reshape(len(data), data.shape[1] // width, 1, width) >> shifts
    return (groups & (1 << bits) - 1).reshape(len(data), data.shape[1] * 8 // bits)


def words(data: torch.Tensor, size: int) -> torch.Tensor:
    """Read bytes as words of ``size`` bytes."""
    shifts = torch.arange(0, 8 * size, 8, device=data.device)
    return (data.unflatten(1, (-1, size)).long() << shifts).sum(2)


def four(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the four codes of each word."""
    return words[:, :, None] >> torch.arange(0, 4 * bits, bits, device=words.device) & (1 << bits) - 1


def signed(data: torch.Tensor) -> torch.Tensor:
    """Read bytes as signed integers."""
    return data.view(torch.int8)


def wide(codes: torch.Tensor) -> torch.Tensor:
    """Convert codes to integers of 32 bits."""
    return codes.int()


def to_f32(codes: torch.Tensor) -> torch.Tensor:
    """Convert codes to float32."""
    return codes.float()


def half(data: torch.Tensor) -> torch.Tensor:
    """Read float16 as float32."""
    return data.contiguous().view(torch.float16).float()


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Join tensors along their second dimension."""
    return torch.cat(parts, 1)


def take(table: np.ndarray, index: torch.Tensor) -> torch.Tensor:
    """Look up entries of a table, which is brought to the device of ``index``."""
    device = index.device
    # CUDA copies a few kilobytes aside before it returns, so that nothing waits; other devices may read them later.
    return torch.from_numpy(table).to(device, non_blocking=device.type == "cuda")[index.int()]


def negated(values: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Negate values where ``signs`` has a bit."""
    return torch.where(spread(signs, 1, 1).bool(), -values, values)
