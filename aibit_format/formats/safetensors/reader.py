"""Reads one safetensors file: checks its header, and returns tensors as views of one mapping.

The format is a u64 length, a JSON header of that length, and the bytes; see
https://github.com/huggingface/safetensors. This reader also refuses duplicate names and holes. Elements of less than a
byte follow one another over the ends of rows, the first in the lowest bits as torch has them, and fill whole bytes.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from ...container.layout import MAX_SIZE
from ...dtypes import DTYPES
from ...errors import SourceError
from ...schemes import make
from ...schemes.packing import pack_plane, unpack_plane
from ..files import pages
from ..source import SourceTensor

DTYPE_NAMES = {
    "BOOL": "bool", "U8": "u8", "I8": "i8", "U16": "u16", "I16": "i16", "U32": "u32", "I32": "i32", "U64": "u64",
    "I64": "i64", "F16": "f16", "BF16": "bf16", "F32": "f32", "F64": "f64",
    "F8_E4M3": "f8_e4m3", "F8_E5M2": "f8_e5m2", "F8_E8M0": "f8_e8m0",
    "F4": "f4_e2m1", "F6_E2M3": "f6_e2m3", "F6_E3M2": "f6_e3m2",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # the limit of the reference implementation


class SafetensorsFile:
    """Read the tensors of one file.

    Raises:
        SourceError: the header is damaged, or does not match the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._map = pages(path)
        self.size = len(self._map)
        if self.size < 8:
            raise SourceError(f"{path}: {self.size} bytes are too few for a safetensors file")
        header = self._header()
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(text, str) for text in self.metadata.values()):
            raise SourceError(f"{path}: __metadata__ of the header is not an object of strings")
        self.tensors: dict[str, SourceTensor] = {}
        self._places: dict[str, tuple[int, int]] = {}
        for name, entry in header.items():
            self._add(name, entry)
        self._check_places()

    def read(self, name: str) -> np.ndarray:
        """Return the tensor's values: a view of the mapping, unless rows of packed elements do not fill their bytes."""
        start, end = self._places[name]
        tensor, dtype = self.tensors[name], DTYPES[self.tensors[name].dtype]
        data, shape = self._map[start:end], tensor.shape
        if dtype.nbytes(shape) == len(data):
            return data.view(dtype.numpy).reshape(dtype.stored(shape))
        return pack_plane(unpack_plane(data, dtype.name, (math.prod(shape),)).reshape(shape), dtype.name)

    def nbytes(self, name: str) -> int:
        """Return the bytes of the tensor in the file."""
        start, end = self._places[name]
        return end - start

    def _header(self) -> dict[str, Any]:
        length = int(self._map[:8].view("<u8")[0])
        if length > min(_MAX_HEADER, self.size - 8):
            raise SourceError(
                f"{self.path}: header of {length} bytes in a file of {self.size}: truncated, or not safetensors"
            )
        self._data = 8 + length

        def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(dict(items)) != len(items):
                raise ValueError("a name is used twice")
            return dict(items)

        try:
            header = json.loads(self._map[8 : self._data].tobytes().decode("utf-8"), object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.path}: header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise SourceError(f"{self.path}: header is not a JSON object")
        return header

    def _add(self, name: str, entry: Any) -> None:
        try:
            shape, dtype = _sizes(entry["shape"]), DTYPE_NAMES[entry["dtype"]]
            start, end = _sizes(entry["data_offsets"])
        except KeyError as error:
            raise SourceError(f"{self.path}: tensor {name!r}: unknown dtype or missing field {error}") from error
        except (TypeError, ValueError) as error:
            raise SourceError(f"{self.path}: tensor {name!r}: malformed entry: {error}") from error
        if end > self.size - self._data:
            raise SourceError(
                f"{self.path}: tensor {name!r} ends at {self._data + end}, the file at {self.size}: truncated"
            )
        packed = DTYPES[dtype].is_packed
        tensor = SourceTensor(
            name, shape, dtype, os.path.basename(self.path), make(dtype) if packed else None,
            offset=None if packed else self._data + start,
        )  # fmt: skip
        bits = math.prod(shape) * DTYPES[dtype].bits
        if 8 * (end - start) != bits:
            wanted = bits / 8 if bits % 8 else bits // 8
            raise SourceError(f"{self.path}: tensor {name!r}: {end - start} bytes, {wanted} for {dtype}{list(shape)}")
        self.tensors[name] = tensor
        self._places[name] = (self._data + start, self._data + end)

    def _check_places(self) -> None:
        end = self._data
        for name, (start, stop) in sorted(self._places.items(), key=lambda item: item[1]):
            if start != end:
                raise SourceError(f"{self.path}: tensor {name!r} at {start}: overlap or hole, expected {end}")
            end = stop
        if end != self.size:
            raise SourceError(f"{self.path}: {self.size} bytes, the header accounts for {end}")


def _sizes(value: Any) -> tuple[int, ...]:
    """Check that a JSON value is a list of integers from 0; ``int`` would also accept 2.5, "3" and true.

    A size may have more digits than Python converts to text, which every message would do.
    """
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in value):
        raise ValueError(f"{repr(value)[:80]} is no list of sizes below 2^63")
    return tuple(value)
