"""Converts between numpy arrays and torch tensors that share memory. torch is imported on the first call.

torch has no dtype for elements of less than a byte but ``float4_e2m1fn_x2``, which is two of them, the first in the low
bits: rows of an even number of f4_e2m1, as they are stored. Other packed planes are bytes to it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from .dtypes import DTYPES
from .errors import SchemeError

if TYPE_CHECKING:
    import torch


@cache
def has_torch() -> bool:
    """Tell whether torch is installed, without importing it."""
    return find_spec("torch") is not None


@cache
def torch_dtypes() -> dict[str, torch.dtype]:
    """Map this package's dtype names to torch's dtypes; those of less than a byte have none."""
    import torch

    return {
        "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "u16": torch.uint16, "i16": torch.int16,
        "u32": torch.uint32, "i32": torch.int32, "u64": torch.uint64, "i64": torch.int64,
        "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
        "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2, "f8_e8m0": torch.float8_e8m0fnu,
    }  # fmt: skip


def plane_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a plane of this dtype: uint8 where elements are packed."""
    return torch_dtypes()["u8" if DTYPES[name].is_packed else name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return this package's name for a torch dtype.

    Raises:
        KeyError: the format has no such dtype.
    """
    return _names()[dtype]


@cache
def _names() -> dict[torch.dtype, str]:
    return {value: name for name, value in torch_dtypes().items()}


def to_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    """Return a tensor that shares the memory of ``array``, a plane of this dtype; packed elements stay uint8.

    Nothing keeps a tensor from writing to a read-only array, and to pages that are not to be written to that is the end
    of the process. Tensors for users are made of arrays of ``File.writable``.
    """
    import torch

    # DLPack, unlike torch.from_numpy, takes read-only arrays without a warning; bytes are a dtype it always knows.
    flat = torch.from_dlpack(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(plane_dtype(dtype)).view(array.shape)


def values_to_torch(array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the plane ``values`` of a tensor of this logical shape as a tensor of its values.

    Raises:
        SchemeError: torch has no such values.
    """
    import torch

    found = to_torch(array, dtype)
    if not DTYPES[dtype].is_packed:
        return found
    pairs = getattr(torch, "float4_e2m1fn_x2", None)  # since torch 2.8
    if pairs is None or dtype != "f4_e2m1" or not shape or shape[-1] % 2:
        raise SchemeError(
            f"torch has no dtype for {dtype}{list(shape)}; File.dequantize and aibit_format.numpy give float32"
        )
    return found.view(pairs)


def values_of_torch(tensor: torch.Tensor) -> tuple[np.ndarray, str, tuple[int, ...]]:
    """Return the plane ``values`` that a CPU tensor is stored in, its dtype, and the logical shape.

    Raises:
        KeyError: the format has no such dtype.
    """
    import torch

    if tensor.dtype != getattr(torch, "float4_e2m1fn_x2", None) or not tensor.ndim:
        array, dtype = to_numpy(tensor)
        return array, dtype, array.shape
    array, _ = to_numpy(tensor.detach().contiguous().view(torch.uint8))
    return array, "f4_e2m1", (*array.shape[:-1], 2 * array.shape[-1])


def to_numpy(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """Return an array that shares the memory of a CPU tensor, and the name of its dtype.

    A tensor that is not contiguous, or that torch negates when it is read (its negative bit), is copied.
    """
    import torch

    name = dtype_name(tensor.dtype)
    flat = tensor.detach().resolve_neg().contiguous()
    if tensor.dtype in (torch.float16, torch.float32):  # numpy has these too
        return flat.numpy(), name
    flat = flat.as_strided((flat.numel(),), (1,))  # a lone element may have any stride, and counts as contiguous
    flat = flat.view(torch.uint8).numpy()
    return flat.view(DTYPES[name].numpy).reshape(tuple(tensor.shape)), name
