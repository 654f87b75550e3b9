"""Reads files into torch: tensors over mapped pages, bitsandbytes modules, whole models.

``safe_open``, ``load_file`` and ``save_file`` have safetensors' names and arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .. import interop
from ..dtypes import DTYPES
from ..errors import MissingPackageError, SchemeError
from ..file import sharded_reader, writer
from ..file.sharded_reader import Opened
from ..io.mapped import Path
from ..numpy import SafeOpen, TensorSlice, to_metadata
from ..schemes import make

try:
    import torch

    from .read_only import ReadOnly, open_writable
except ImportError as error:
    raise MissingPackageError("aibit_format.torch needs torch: pip install 'aibit-format[hf]'") from error

__all__ = ["load_file", "safe_open", "save_file"]


class safe_open(SafeOpen):  # noqa: N801 - safetensors' name
    """Opens an ``.aibit`` file with safetensors' methods; ``get_tensor`` returns torch tensors on ``device``.

    Plain tensors on the CPU are views of the mapping, of which a page is copied before it is written to; the file stays
    as it is. Others are decoded to their logical dtype.
    """

    def __init__(self, filename: Path, framework: Literal["pt", "torch"] = "pt", device: Any = "cpu") -> None:
        super().__init__(filename, framework)
        self._file, self._writable = open_writable(self._file)
        self._device = torch.device(device)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return the tensor ``name``, in its logical shape and dtype."""
        return _tensor(self._file, name, self._device, self._writable)

    def get_slice(self, name: str) -> TensorSlice:
        """Return a view that reads parts of a tensor: ``f.get_slice(name)[2:4]`` is ``f.get_tensor(name)[2:4]``.

        Raises:
            SchemeError: elements are smaller than a byte, so that slices may begin inside one.
        """
        info = self._file.info(name)
        if info.dtype in DTYPES and DTYPES[info.dtype].is_packed:
            raise SchemeError(f"tensor {name!r}: {info.dtype} is not sliced in torch, but by aibit_format.numpy")

        def finish(array: np.ndarray, dtype: str) -> torch.Tensor:
            wanted = interop.torch_dtypes()[info.dtype]
            return _guarded(interop.to_torch(array, dtype), self._writable).to(self._device, wanted)

        return TensorSlice(self._file, info, not info.scheme.lossy, finish)


def load_file(filename: Path, device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Return every tensor of the file, in logical shape and dtype."""
    with sharded_reader.open(filename) as file:
        mine, writable = open_writable(file)
        return {name: _tensor(mine, name, torch.device(device), writable) for name in file}


def save_file(tensors: Mapping[str, torch.Tensor], filename: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors as they are, in the plain scheme of their dtype. An existing file is replaced.

    Raises:
        WriteError, FormatError: see ``aibit_format.file.writer``; for ``metadata``, ``aibit_format.numpy.save_file``.
    """
    arrays = {}
    for name, tensor in tensors.items():
        array, dtype, shape = interop.values_of_torch(tensor.cpu())
        arrays[writer.Tensor(name, shape, dtype, make(dtype))] = {"values": array}
    writer.write(filename, arrays, to_metadata(metadata), overwrite=True)


def _tensor(file: Opened, name: str, device: torch.device, writable: bool) -> torch.Tensor:
    info = file.info(name)
    if info.scheme.lossy:
        values = torch.from_numpy(file.dequantize(name)).to(interop.torch_dtypes()[info.dtype])
    else:
        try:
            values = interop.values_to_torch(file.planes(name)["values"], info.dtype, info.shape)
        except SchemeError as error:
            raise SchemeError(f"tensor {name!r}: {error}") from None
        values = _guarded(values, writable)
    return values.to(device)


def _guarded(values: torch.Tensor, writable: bool) -> torch.Tensor:
    return values if writable else values.as_subclass(ReadOnly)
