"""Implements ``ggml_layout.Operations`` with numpy."""

from __future__ import annotations

import numpy as np


def spread(data: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Unpack codes in GGML's order."""
    if bits == width == 1:  # numpy has a faster way for this one
        return np.unpackbits(data, axis=1, bitorder="little")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = data.reshape(len(data), data.shape[1] // width, 1, width) >> shifts
    return (groups & np.uint8((1 << bits) - 1)).reshape(len(data), data.shape[1] * 8 // bits)


def words(data: np.ndarray, size: int) -> np.ndarray:
    """Read bytes as words of ``size`` bytes."""
    return np.ascontiguousarray(data).view(f"<u{size}")


def four(words: np.ndarray, bits: int) -> np.ndarray:
    """Unpack the four codes of each word."""
    return words[:, :, None] >> np.arange(0, 4 * bits, bits, dtype=words.dtype) & (1 << bits) - 1


def signed(data: np.ndarray) -> np.ndarray:
    """Read bytes as signed integers."""
    return data.view(np.int8)


def wide(codes: np.ndarray) -> np.ndarray:
    """Convert codes to integers of 16 bits."""
    return codes.astype(np.uint16)


def to_f32(codes: np.ndarray) -> np.ndarray:
    """Convert codes to float32."""
    return codes.astype(np.float32)


def half(data: np.ndarray) -> np.ndarray:
    """Read float16 as float32."""
    return data.copy().view("<f2").astype(np.float32)


def join(parts: list[np.ndarray]) -> np.ndarray:
    """Join arrays along their second dimension."""
    return np.concatenate(parts, axis=1)


def take(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Look up entries of a table."""
    return table.take(index, axis=0)


def negated(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Negate values where ``signs`` has a bit, in their place."""
    values.view(np.uint32)[:] ^= spread(signs, 1, 1).astype(np.uint32) << 31
    return values
