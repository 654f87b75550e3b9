"""A GGUF file's header: its metadata, and each tensor's name, shape and type.

See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count is compared with the bytes that are left
before anything is read or allocated by it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SourceError

# Type number -> name, elements a block, bytes a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 2 + 16), 3: ("q4_1", 32, 2 + 2 + 16),
    6: ("q5_0", 32, 2 + 4 + 16), 7: ("q5_1", 32, 2 + 2 + 4 + 16), 8: ("q8_0", 32, 2 + 32), 9: ("q8_1", 32, 4 + 4 + 32),
    10: ("q2_k", 256, 16 + 64 + 2 + 2), 11: ("q3_k", 256, 32 + 64 + 12 + 2), 12: ("q4_k", 256, 2 + 2 + 12 + 128),
    13: ("q5_k", 256, 2 + 2 + 12 + 32 + 128), 14: ("q6_k", 256, 128 + 64 + 16 + 2), 15: ("q8_k", 256, 4 + 256 + 32),
    16: ("iq2_xxs", 256, 2 + 64), 17: ("iq2_xs", 256, 2 + 64 + 8), 18: ("iq3_xxs", 256, 2 + 64 + 32),
    19: ("iq1_s", 256, 2 + 32 + 16), 20: ("iq4_nl", 32, 2 + 16), 21: ("iq3_s", 256, 2 + 64 + 8 + 32 + 4),
    22: ("iq2_s", 256, 2 + 64 + 16), 23: ("iq4_xs", 256, 2 + 2 + 4 + 128), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 32 + 16 + 8), 30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 2 + 4 + 48), 35: ("tq2_0", 256, 2 + 64), 39: ("mxfp4", 32, 1 + 16),
}  # fmt: skip

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_SHOWN = 1000  # items of an array of strings that are kept; vocabularies hold hundreds of thousands


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor of the directory. ``shape`` is in the order of numpy and torch, outermost first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUFFile:
    """The header of a GGUF file, version 2 or 3.

    Raises:
        SourceError: it is damaged or cut off, or has a type this reader does not know.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = os.path.getsize(path)
        self._map = np.memmap(path, np.uint8, "r")
        self._position = 4
        self.version = self._number("<u4")
        if self.version not in (2, 3):
            raise SourceError(f"{path}: GGUF version {self.version}, this reader knows 2 and 3")
        tensors, entries = self._number("<u8"), self._number("<u8")
        self._fits(tensors, 24)
        self._fits(entries, 13)
        self.metadata = {self._string(): self._value(self._number("<u4")) for _ in range(entries)}
        self.tensors = [self._tensor() for _ in range(tensors)]

    def _tensor(self) -> GGUFTensor:
        name, rank = self._string(), self._number("<u4")
        self._fits(rank, 8)
        shape = tuple(self._number("<u8") for _ in range(rank))[::-1]
        number, offset = self._number("<u4"), self._number("<u8")
        if number not in TYPES:
            raise SourceError(f"{self.path}: tensor {name!r}: unknown type {number}")
        kind, block, size = TYPES[number]
        if shape and shape[-1] % block:
            raise SourceError(
                f"{self.path}: tensor {name!r}: rows of {shape[-1]} are not whole blocks of {block} ({kind})"
            )
        return GGUFTensor(name, shape, kind, offset, math.prod(shape) // block * size)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise SourceError(f"{self.path}: unknown metadata type {kind} at {self._position}")
        value = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _array(self) -> Any:
        kind, count = self._number("<u4"), self._number("<u8")
        if kind == _STRING:
            self._fits(count, 8)
            values = [self._string() if i < _SHOWN else self._skip() for i in range(count)]
            return values[:_SHOWN] if count > _SHOWN else values
        if kind not in _SCALARS:
            raise SourceError(f"{self.path}: an array of type {kind} at {self._position}: nested or unknown")
        dtype = np.dtype(_SCALARS[kind])
        self._fits(count, dtype.itemsize)
        return self._take(count * dtype.itemsize).view(dtype)

    def _string(self) -> str:
        length = self._number("<u8")
        self._fits(length, 1)
        try:
            return self._take(length).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: text at {self._position - length} is not UTF-8") from error

    def _skip(self) -> None:
        length = self._number("<u8")
        self._fits(length, 1)
        self._take(length)

    def _number(self, dtype: str) -> Any:
        size = np.dtype(dtype).itemsize
        self._fits(1, size)
        return self._take(size).view(dtype)[0].item()

    def _fits(self, count: int, each: int) -> None:
        left = self.size - self._position
        if count > left // each:
            raise SourceError(
                f"{self.path}: {count} items at {self._position} do not fit the {left} bytes that are left"
            )

    def _take(self, length: int) -> np.ndarray:
        start, self._position = self._position, self._position + length
        return self._map[start : self._position]
