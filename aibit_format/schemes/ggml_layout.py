"""Describes a type of GGML's blocks: its fields, which of them are scales, and in which order codes lie in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import SchemeError

Fields = Mapping[str, np.ndarray]  # fields of n blocks: u8 [n, bytes], the float16 scales as f32 [n, 1]
Check = Callable[[np.ndarray], np.ndarray]  # of a field, u8 [n, bytes]: where it holds a scale that no block may have

_HALVES = frozenset({"d", "dmin", "m"})  # fields that are one float16, if they have two bytes


def half_is_not_finite(scale: np.ndarray) -> np.ndarray:
    """Return where a float16, u8 [n, 2], is infinite or NaN: its exponent bits, in the second byte, are all set."""
    return scale[:, 1] & 0x7C == 0x7C


@dataclass(frozen=True)
class Layout:
    """Describe a type of block: its elements, its fields with their bytes in order, and how they are decoded."""

    block: int
    fields: Mapping[str, int]
    decode: Callable[[Fields], np.ndarray]  # to f32 [n, block], in any shape
    encode: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None  # of f32 [n, block]; scales as f32 [n, 1]
    other_scales: Mapping[str, Check] = field(default_factory=dict)  # fields with scales that are no float16

    @property
    def size(self) -> int:
        """Return the bytes of a block."""
        return sum(self.fields.values())

    @property
    def scales(self) -> dict[str, Check]:
        """Return the fields that hold scales, in order, each with the check of its bytes."""
        found = {name: half_is_not_finite for name in self.fields if self._is_half(name)}
        return found | dict(self.other_scales)

    def split(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        """Split blocks, u8 [n, size], into their fields."""
        parts = np.split(blocks, np.cumsum(list(self.fields.values()))[:-1], axis=1)
        return {
            name: part.copy().view("<f2").astype(np.float32) if self._is_half(name) else part
            for name, part in zip(self.fields, parts, strict=True)
        }

    def join(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """Join fields, as ``encode`` returns them, to blocks, u8 [n, size].

        Raises:
            SchemeError: a scale is beyond float16's range.
        """
        parts = []
        for name in self.fields:
            part = fields[name]
            if self._is_half(name):
                with np.errstate(over="ignore"):
                    part = part.astype("<f2")
                if not np.isfinite(part).all():
                    raise SchemeError("values are too large: a block's scale is beyond float16's 65504")
            parts.append(part.view(np.uint8))
        return np.concatenate(parts, axis=1)

    def bad_scales(self, blocks: np.ndarray) -> list[str]:
        """Return the names of fields in which any of the blocks, u8 [n, size], has a scale that is not finite."""
        starts = dict(zip(self.fields, np.cumsum([0, *self.fields.values()]).tolist(), strict=False))
        return [
            name
            for name, is_bad in self.scales.items()
            if is_bad(blocks[:, starts[name] : starts[name] + self.fields[name]]).any()
        ]

    def _is_half(self, name: str) -> bool:
        return name in _HALVES and self.fields[name] == 2


def spread(data: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Unpack codes of ``bits`` bits from u8 [n, bytes] to u8 [n, 8 / bits * bytes], in GGML's order.

    Each run of ``width`` bytes holds first the codes in the lowest bits of each byte, then those in the next higher
    bits, and so on.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = data.reshape(len(data), data.shape[1] // width, 1, width) >> shifts
    return (groups & np.uint8((1 << bits) - 1)).reshape(len(data), data.shape[1] * 8 // bits)


def to_f32(codes: np.ndarray) -> np.ndarray:
    """Convert codes to float32."""
    return codes.astype(np.float32)


def grouped(codes: np.ndarray, groups: int) -> np.ndarray:
    """Convert codes to f32 [n, groups, elements per group]."""
    return to_f32(codes).reshape(len(codes), groups, -1)
