"""Reads and writes ``.aibit`` files as numpy arrays, under safetensors' names: ``safe_open`` and the like.

The metadata of a safetensors file are pairs of strings under any keys, such as ``{"format": "pt"}``; here keys have a
namespace, and values a type. ``save_file`` keeps pairs whose keys have none together, as a JSON object in the string
``safetensors.metadata``, and ``safe_open(...).metadata()`` returns them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

import numpy as np

from .container.metadata import Value
from .container.names import bad_key
from .container.tables import TensorInfo
from .dtypes import DTYPES
from .errors import SchemeError
from .file import sharded_reader, writer
from .file.sharded_reader import Opened
from .io.mapped import Path
from .schemes import make
from .schemes.base import matrix
from .schemes.plain import Plain

__all__ = ["load_file", "safe_open", "save_file"]

PAIRS = "safetensors.metadata"  # the metadata key of pairs whose own keys have no namespace

Index = int | slice | EllipsisType | tuple["int | slice | EllipsisType", ...]
Finish = Callable[[np.ndarray, str], Any]  # takes values in the storage of a dtype, and that dtype


class TensorSlice:
    """Read parts of one tensor, as the object that safetensors' ``get_slice`` returns does.

    Args:
        file: the file.
        info: the tensor.
        stored: return values as they are stored; otherwise they are decoded to float32.
        finish: turns values into the result.
    """

    def __init__(self, file: Opened, info: TensorInfo, stored: bool, finish: Finish) -> None:
        self._file, self._info, self._stored, self._finish = file, info, stored, finish

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Return the tensor's logical dtype under safetensors' name, if it has one: ``"F32"``, ``"BF16"``, ``"F4"``."""
        return "F4" if self._info.dtype == "f4_e2m1" else self._info.dtype.upper()

    def __getitem__(self, index: Index) -> Any:
        """Return the values that integers, slices and an ellipsis select, as in numpy; only their rows are read.

        Raises:
            TypeError: the index is anything else.
            IndexError: it has too many parts, or an integer is out of range.
        """
        first, *others = _whole(index, len(self._info.shape)) or (...,)
        if self._stored:
            found, dtype = self._stored_rows(first), self._info.dtype
        else:
            found, dtype = self._decoded_rows(first), "f32"
        kept = () if isinstance(first, int) else (slice(None),)  # an integer has taken the first dimension away
        return self._finish(found[(*kept, *others)] if others else found, dtype)

    def _stored_rows(self, first: int | slice | EllipsisType) -> np.ndarray:
        """Return a view of the stored values that ``first`` selects along the first dimension."""
        (plane,) = self._info.planes
        if first is ... or not plane.length:
            return self._file.planes(self._info.name)["values"][first]
        chosen = range(plane.shape[0])[first]
        if isinstance(chosen, int):
            return self._stored_rows(slice(chosen, chosen + 1))[0]
        # From the first row that is wanted to the last; backwards too, it is one piece of the file.
        start, stop = (min(chosen), max(chosen) + 1) if chosen else (0, 0)
        count, row = stop - start, plane.length // plane.shape[0]
        shape = (count, *plane.shape[1:])
        part = replace(plane, shape=shape, offset=plane.offset + start * row, length=count * row)
        rows = self._file.part(self._info.name).view(part)
        return rows[:: chosen.step] if chosen.step > 0 else rows[::-1][:: -chosen.step]

    def _decoded_rows(self, first: int | slice | EllipsisType) -> np.ndarray:
        """Return the float32 values that ``first`` selects along the first dimension."""
        info, planes = self._info, self._file.planes(self._info.name)
        self._file.check_values(info, planes)
        if first is ... or len(info.shape) < 2 or not all(info.shape):  # a vector is one row
            return info.scheme.decode(planes, info.shape, info.dtype)[first]
        chosen = np.arange(info.shape[0])[first]
        inner = matrix(info.shape)[0] // info.shape[0]  # rows of the matrix for each index
        rows = (chosen.reshape(-1, 1) * inner + np.arange(inner)).reshape(-1)
        if isinstance(first, slice) and len(rows) and first.step in (None, 1):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        return info.scheme.decode_rows(planes, info.shape, info.dtype, rows).reshape(*chosen.shape, *info.shape[1:])


class SafeOpen:
    """The base that numpy's and torch's ``safe_open`` share: names, metadata, and a context that closes the file."""

    def __init__(self, filename: Path, framework: str) -> None:
        self._file = sharded_reader.open(filename)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()

    def keys(self) -> list[str]:
        """Return the names of the tensors, in file order."""
        return self._file.keys()

    def metadata(self) -> Mapping[str, Any]:
        """Return the file's metadata, including pairs that ``save_file`` was given without a namespace."""
        return from_metadata(self._file.metadata)


class safe_open(SafeOpen):  # noqa: N801 - safetensors' name
    """Open an ``.aibit`` file with safetensors' methods; ``get_tensor`` returns arrays."""

    def __init__(self, filename: Path, framework: Literal["np", "numpy"] = "np") -> None:
        super().__init__(filename, framework)

    def get_tensor(self, name: str) -> np.ndarray:
        """Return a view of a plain tensor whose dtype numpy has, or the float32 values of any other."""
        return _array(self._file, name)

    def get_slice(self, name: str) -> TensorSlice:
        """Return an object that reads parts of a tensor: ``f.get_slice(name)[2:4]`` is ``f.get_tensor(name)[2:4]``."""
        info = self._file.info(name)
        return TensorSlice(self._file, info, _is_exact(info), lambda array, dtype: array)


def load_file(filename: Path) -> dict[str, np.ndarray]:
    """Return every tensor of the file by name, as ``safe_open.get_tensor`` returns it."""
    with sharded_reader.open(filename) as file:
        return {name: _array(file, name) for name in file}


def save_file(tensors: Mapping[str, np.ndarray], filename: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write arrays unquantized, each in the plain scheme of its dtype. An existing file is replaced.

    Args:
        tensors: arrays by name.
        filename: the file to write.
        metadata: strings under any keys, as safetensors takes them. Keys with a namespace (``"author.name"``) may also
            have values of the format's other types.

    Raises:
        SchemeError: an array has a dtype that the format lacks.
        FormatError: the format has no place for a name or a metadata value.
    """
    names = {dtype.numpy: name for name, dtype in DTYPES.items() if dtype.in_numpy}
    planned = {}
    for name, array in tensors.items():
        if array.dtype not in names:
            raise SchemeError(f"tensor {name!r}: the format has no dtype {array.dtype}")
        dtype = names[array.dtype]
        planned[writer.Tensor(name, array.shape, dtype, make(dtype))] = {"values": array}
    writer.write(filename, planned, to_metadata(metadata), overwrite=True)


def to_metadata(given: Mapping[str, Any] | None) -> dict[str, Value]:
    """Return the metadata to store for those that ``save_file`` is given: strings under other keys go to ``PAIRS``."""
    given = given or {}
    pairs = {key: value for key, value in given.items() if isinstance(value, str) and (key == PAIRS or bad_key(key))}
    values = {key: value for key, value in given.items() if key not in pairs}
    return values | ({PAIRS: json.dumps(pairs, sort_keys=True)} if pairs else {})


def from_metadata(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the metadata that ``to_metadata`` was given. Other strings under ``PAIRS`` are kept."""
    found = dict(values)
    try:
        pairs = json.loads(found[PAIRS])
    except (KeyError, TypeError, ValueError, RecursionError):
        return found
    if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
        return found
    del found[PAIRS]
    return found | pairs


def _is_exact(info: TensorInfo) -> bool:
    """Tell whether the stored values can be returned as an array: the tensor is plain, of a dtype that numpy has."""
    return isinstance(info.scheme, Plain) and DTYPES[info.dtype].in_numpy


def _array(file: Opened, name: str) -> np.ndarray:
    return file.planes(name)["values"] if _is_exact(file.info(name)) else file.dequantize(name)


def _whole(index: Index, rank: int) -> tuple[int | slice | EllipsisType, ...]:
    """Return an index as a tuple, in which slices replace an ellipsis."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | slice | EllipsisType):
            raise TypeError(f"{part!r} is no integer, slice or ellipsis; index what get_tensor returns instead")
    dots = parts.count(...)
    if dots > 1 or len(parts) - dots > rank:
        raise IndexError(f"{len(parts)} indices for a tensor of {rank} dimensions")
    if dots:
        at = parts.index(...)
        parts = (*parts[:at], *[slice(None)] * (rank - len(parts) + 1), *parts[at + 1 :])
    return parts
