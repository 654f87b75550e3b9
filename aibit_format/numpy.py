"""Reads and writes ``.aibit`` files as numpy arrays, under safetensors' names: ``safe_open`` and the like."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from .dtypes import DTYPES
from .errors import SchemeError
from .file import sharded_reader, writer
from .file.sharded_reader import Opened
from .io.mapped import Path
from .schemes import make
from .schemes.plain import Plain

__all__ = ["load_file", "safe_open", "save_file"]


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
        """Return the file's metadata."""
        return self._file.metadata


class safe_open(SafeOpen):  # noqa: N801 - safetensors' name
    """Open an ``.aibit`` file with safetensors' methods; ``get_tensor`` returns arrays."""

    def __init__(self, filename: Path, framework: Literal["np", "numpy"] = "np") -> None:
        super().__init__(filename, framework)

    def get_tensor(self, name: str) -> np.ndarray:
        """Return a view of a plain tensor whose dtype numpy has, or the float32 values of any other."""
        return _array(self._file, name)


def load_file(filename: Path) -> dict[str, np.ndarray]:
    """Return every tensor of the file by name, as ``safe_open.get_tensor`` returns it."""
    file = sharded_reader.open(filename)
    return {name: _array(file, name) for name in file}


def save_file(tensors: Mapping[str, np.ndarray], filename: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write arrays unquantized, each in the plain scheme of its dtype. An existing file is replaced.

    Raises:
        SchemeError: an array has a dtype that the format lacks.
    """
    names = {dtype.numpy: name for name, dtype in DTYPES.items() if name != "bf16" and not name.startswith("f8_")}
    planned = {}
    for name, array in tensors.items():
        if array.dtype not in names:
            raise SchemeError(f"tensor {name!r}: the format has no dtype {array.dtype}")
        dtype = names[array.dtype]
        planned[writer.Tensor(name, array.shape, dtype, make(dtype))] = {"values": array}
    writer.write(filename, planned, metadata, overwrite=True)


def _array(file: Opened, name: str) -> np.ndarray:
    info = file.info(name)
    exact = isinstance(info.scheme, Plain) and info.dtype != "bf16" and not info.dtype.startswith("f8_")
    return file.planes(name)["values"] if exact else file.dequantize(name)
