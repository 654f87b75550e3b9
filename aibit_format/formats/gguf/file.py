"""Parses a GGUF file: its metadata, the directory of its tensors, and their bytes as views of one mapping.

See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count is compared with the remaining bytes before
it is used to read or allocate anything, and no tensor may lie outside the file or overlap another.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SourceError
from ..files import pages

# Type number -> name, elements per block, bytes per block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 2 + 16), 3: ("q4_1", 32, 2 + 2 + 16),
    6: ("q5_0", 32, 2 + 4 + 16), 7: ("q5_1", 32, 2 + 2 + 4 + 16), 8: ("q8_0", 32, 2 + 32), 9: ("q8_1", 32, 4 + 4 + 32),
    10: ("q2_k", 256, 16 + 64 + 2 + 2), 11: ("q3_k", 256, 32 + 64 + 12 + 2), 12: ("q4_k", 256, 2 + 2 + 12 + 128),
    13: ("q5_k", 256, 2 + 2 + 12 + 32 + 128), 14: ("q6_k", 256, 128 + 64 + 16 + 2), 15: ("q8_k", 256, 4 + 256 + 32),
    16: ("iq2_xxs", 256, 2 + 64), 17: ("iq2_xs", 256, 2 + 64 + 8), 18: ("iq3_xxs", 256, 2 + 64 + 32),
    19: ("iq1_s", 256, 2 + 32 + 16), 20: ("iq4_nl", 32, 2 + 16), 21: ("iq3_s", 256, 2 + 64 + 8 + 32 + 4),
    22: ("iq2_s", 256, 2 + 64 + 16), 23: ("iq4_xs", 256, 2 + 2 + 4 + 128), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 32 + 16 + 8), 30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 2 + 4 + 48), 35: ("tq2_0", 256, 2 + 64), 39: ("mxfp4", 32, 1 + 16), 40: ("nvfp4", 64, 4 + 32),
    41: ("q1_0", 128, 2 + 16), 42: ("q2_0", 64, 2 + 16),
}  # fmt: skip
NUMBERS = {kind: number for number, (kind, _, _) in TYPES.items()}

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Metadata type -> letter of ``struct``, numpy dtype.
_SCALARS = {
    0: ("B", "<u1"), 1: ("b", "<i1"), 2: ("H", "<u2"), 3: ("h", "<i2"), 4: ("I", "<u4"), 5: ("i", "<i4"),
    6: ("f", "<f4"), 7: ("B", "?"), 10: ("Q", "<u8"), 11: ("q", "<i8"), 12: ("d", "<f8"),
}  # fmt: skip

_MAX_RANK = 4  # GGML's
_MAX_STRINGS = 1 << 22  # in an array: sixteen times the largest vocabulary there is
_MAX_TEXT = 256 << 20  # bytes from the front in which all text lies; a large vocabulary takes 20 MB
_DEFAULT_ALIGNMENT = 32
_ALIGNMENTS = frozenset(1 << power for power in range(3, 21))


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Describe a tensor of the directory. ``shape`` is in the order of numpy and torch, outermost first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int  # from the start of the tensor data
    nbytes: int


class GGUFFile:
    """Read a little-endian GGUF file of version 2 or 3.

    ``metadata`` maps keys to numbers, bools, strings, lists of strings and numpy arrays; ``tensors`` is in file order.

    Raises:
        SourceError: it is damaged or truncated, or has a type that this reader does not know.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._map = pages(path)
        self.size = len(self._map)
        self._data = memoryview(self._map)  # pyright: ignore[reportArgumentType]
        self._position = 0
        self._fits(24, 1)
        if self._data[:4] != b"GGUF":
            raise SourceError(f"{path}: does not begin with GGUF")
        self._position = 4
        self.version: int = self._number("I")
        if self.version not in (2, 3):
            raise SourceError(f"{path}: GGUF version {self.version}, this reader knows 2 and 3, little-endian")
        tensors, entries = self._number("Q"), self._number("Q")
        self._fits(tensors, 24)
        self._fits(entries, 13)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in self.metadata:
                raise SourceError(f"{path}: metadata key {key!r} is there twice")
            self.metadata[key] = self._value(self._number("I"))
        self.alignment: int = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(self.alignment) is not int or self.alignment not in _ALIGNMENTS:
            raise SourceError(f"{path}: general.alignment {self.alignment!r}, a power of two from 8 to 2^20 is needed")
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.data_start = -(-self._position // self.alignment) * self.alignment
        self._check_places()

    def read(self, tensor: GGUFTensor) -> np.ndarray:
        """Return the tensor's bytes, u8 [nbytes], a view of the mapping."""
        start = self.data_start + tensor.offset
        return self._map[start : start + tensor.nbytes]

    def _tensor(self) -> GGUFTensor:
        name, rank = self._string(), self._number("I")
        if rank > _MAX_RANK:
            raise SourceError(f"{self.path}: tensor {name!r}: rank {rank}, GGML has at most {_MAX_RANK}")
        shape = tuple(self._number("Q") for _ in range(rank))[::-1]
        number, offset = self._number("I"), self._number("Q")
        if number not in TYPES:
            raise SourceError(f"{self.path}: tensor {name!r}: unknown type {number}")
        kind, block, size = TYPES[number]
        row = shape[-1] if shape else 1
        if row % block:
            raise SourceError(f"{self.path}: tensor {name!r}: rows of {row} are not whole blocks of {block} ({kind})")
        return GGUFTensor(name, shape, kind, offset, math.prod(shape) // block * size)

    def _check_places(self) -> None:
        """Check that every tensor lies in the file, is aligned, has a unique name and overlaps no other."""
        names: set[str] = set()
        end = 0
        for tensor in sorted(self.tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
            where = f"{self.path}: tensor {tensor.name!r}"
            if tensor.name in names:
                raise SourceError(f"{where} is there twice")
            if tensor.offset % self.alignment:
                raise SourceError(f"{where}: offset {tensor.offset} is not a multiple of {self.alignment}")
            if tensor.offset < end:
                raise SourceError(f"{where}: begins at {tensor.offset}, inside another that ends at {end}")
            end = tensor.offset + tensor.nbytes
            if tensor.nbytes and self.data_start + end > self.size:
                raise SourceError(f"{where}: ends at {self.data_start + end}, the file at {self.size}: truncated")
            names.add(tensor.name)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise SourceError(f"{self.path}: unknown metadata type {kind} at {self._position}")
        value = self._number(_SCALARS[kind][0])
        if kind != _BOOL:
            return value
        if value > 1:
            raise SourceError(f"{self.path}: a bool at {self._position - 1} is {value}, 0 or 1 is needed")
        return bool(value)

    def _array(self) -> list[str] | np.ndarray:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            raise SourceError(f"{self.path}: an array of type {kind} at {self._position}: nested or unknown")
        dtype = np.dtype(_SCALARS[kind][1])
        self._fits(count, dtype.itemsize)
        values = self._map[self._position : self._position + count * dtype.itemsize]
        self._position += count * dtype.itemsize
        if kind == _BOOL and values.max(initial=0) > 1:
            raise SourceError(f"{self.path}: an array of bools before {self._position} holds others than 0 and 1")
        return values.view(dtype)

    def _strings(self, count: int) -> list[str]:
        """Read strings, in as tight a loop as possible: a vocabulary has hundreds of thousands of them."""
        self._fits(count, 8)
        if count > _MAX_STRINGS:
            raise SourceError(f"{self.path}: {count} strings at {self._position}, at most {_MAX_STRINGS} are read")
        data, size, position = self._data, min(self.size, _MAX_TEXT), self._position
        length_at = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        start = position
        try:
            for _ in range(count):
                start = position + 8
                position = start + length_at(data, position)[0]
                if position > size:
                    break
                strings.append(str(data[start:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: text at {start} is not UTF-8") from error
        except struct.error:
            pass
        if len(strings) < count:
            raise SourceError(
                f"{self.path}: string {len(strings)} of {count} ends beyond the file's {self.size} bytes, "
                f"or beyond the first {_MAX_TEXT}"
            )
        self._position = position
        return strings

    def _string(self) -> str:
        return self._strings(1)[0]

    def _number(self, letter: str) -> Any:
        size = struct.calcsize("<" + letter)
        self._fits(1, size)
        self._position += size
        return struct.unpack_from("<" + letter, self._data, self._position - size)[0]

    def _fits(self, count: int, each: int) -> None:
        left = self.size - self._position
        if count > left // each:
            raise SourceError(
                f"{self.path}: {count} items at {self._position} do not fit the {left} bytes that are left"
            )
