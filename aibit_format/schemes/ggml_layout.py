"""Describes a type of GGML's blocks: its fields, which of them are scales, and what decodes them.

Decoders are written once for numpy's arrays and torch's tensors, which do most things alike. What they do not is
``Operations``: the functions of ``ggml_numpy``, and those that decode on a GPU, which are not of this layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from ..errors import SchemeError

Array = Any  # numpy's or torch's
Fields = Mapping[str, Array]  # fields of n blocks: u8 [n, bytes], the float16 scales as f32 [n, 1]
Check = Callable[[np.ndarray], np.ndarray]  # of a field, u8 [n, bytes]: where it holds a scale that no block may have

_HALVES = frozenset({"d", "dmin", "m"})  # fields that are one float16, if they have two bytes


def half_is_not_finite(scale: np.ndarray) -> np.ndarray:
    """Return where a float16, u8 [n, 2], is infinite or NaN: its exponent bits, in the second byte, are all set."""
    return scale[:, 1] & 0x7C == 0x7C


class Operations(Protocol):
    """Describe what decoders need that numpy and torch do differently. Codes are u8 unless it is said otherwise."""

    def spread(self, data: Array, bits: int, width: int, /) -> Array:
        """Unpack codes of ``bits`` bits from u8 [n, bytes] to u8 [n, 8 / bits * bytes], in GGML's order.

        Each run of ``width`` bytes holds first the codes in the lowest bits of each byte, then those in the next higher
        bits, and so on.
        """
        ...

    def words(self, data: Array, size: int, /) -> Array:
        """Read bytes, u8 [n, bytes], as little-endian words of ``size`` bytes, [n, words], of an unsigned type."""
        ...

    def four(self, words: Array, bits: int, /) -> Array:
        """Unpack the four codes of ``bits`` bits, the first in the lowest, of each of [n, words]: [n, words, 4]."""
        ...

    def signed(self, data: Array, /) -> Array:
        """Read bytes as signed integers."""
        ...

    def wide(self, codes: Array, /) -> Array:
        """Convert codes to integers of 16 bits or more."""
        ...

    def to_f32(self, codes: Array, /) -> Array:
        """Convert codes to float32."""
        ...

    def half(self, data: Array, /) -> Array:
        """Read little-endian float16, u8 [n, 2], as f32 [n, 1]."""
        ...

    def join(self, parts: list[Array], /) -> Array:
        """Join arrays along their second dimension."""
        ...

    def take(self, table: np.ndarray, index: Array, /) -> Array:
        """Look up entries of a table by integers, in the shape of ``index`` and an entry's own after it."""
        ...

    def negated(self, values: Array, signs: Array, /) -> Array:
        """Negate values, f32 [n, k], where ``signs``, u8 [n, k / 8], has a bit, from the lowest up; may overwrite."""
        ...


@dataclass(frozen=True)
class Layout:
    """Describe a type of block: its elements, its fields with their bytes in order, and how they are decoded."""

    block: int
    fields: Mapping[str, int]
    decode: Callable[[Fields, Operations], Array]  # to f32 [n, block], in any shape
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

    @property
    def places(self) -> dict[str, slice]:
        """Return which bytes of a block each field is."""
        ends = accumulate(self.fields.values())
        return {name: slice(end - size, end) for (name, size), end in zip(self.fields.items(), ends, strict=True)}

    def split(self, blocks: Array, ops: Operations) -> dict[str, Array]:
        """Split blocks, u8 [n, size], into their fields."""
        return {
            name: ops.half(blocks[:, place]) if self._is_half(name) else blocks[:, place]
            for name, place in self.places.items()
        }

    def values(self, blocks: Array, ops: Operations) -> Array:
        """Decode blocks, u8 [n, size] of which there is at least one, to f32 [n, block]."""
        return self.decode(self.split(blocks, ops), ops).reshape(len(blocks), self.block)

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
        return [name for name, is_bad in self.scales.items() if is_bad(blocks[:, self.places[name]]).any()]

    def _is_half(self, name: str) -> bool:
        return name in _HALVES and self.fields[name] == 2


def grouped(values: Array, groups: int) -> Array:
    """Cut values, [n, elements], into groups: [n, groups, elements per group]."""
    return values.reshape(len(values), groups, -1)
