"""Encoding at speed: the schemes' own results, bit for bit, by torch; and the error that was made.

numpy converts half floats one at a time; torch does it in vectors. A tensor goes in pieces whose float32 copies stay
in cache, through one buffer: fresh memory would cost a page fault a page. Where torch is missing, or a scheme has no
fast way here, the scheme's numpy code is used.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bridge import to_numpy, to_torch, torch_dtypes
from .errors import SchemeError
from .schemes import Scheme
from .schemes.base import matrix
from .schemes.int8 import Int8
from .schemes.plain import Plain

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 18  # elements encoded at a time
_MEASURED = 1 << 16  # elements measured at a time
_DIGITS = 6  # significant digits of the figures
_STRIDE = 16  # of the rows that the error is measured on...
_MANY_ROWS = 1024  # ...in tensors of at least so many; all rows of others


@dataclass(frozen=True, slots=True)
class EncodingError:
    """How far decoded values are from the source's, on every sixteenth row of a tensor of 1024 rows or more.

    relative_rms: sqrt(sum((decoded - x)^2) / sum(x^2)).
    largest: max |decoded - x|.
    signal_to_noise_db: 10 log10(sum(x^2) / sum((decoded - x)^2)).

    The figures go into the file, so they must not depend on the order of additions, which is the machine's choice:
    they are added in float64 and rounded to six digits.
    """

    relative_rms: float
    largest: float
    signal_to_noise_db: float

    @classmethod
    def of(cls, noise: float, signal: float, largest: float) -> EncodingError | None:
        """From sums of squares; ``None`` for a tensor that was stored exactly."""
        if noise == 0 or signal == 0:
            return None
        figures = math.sqrt(noise / signal), largest, 10 * math.log10(signal / noise)
        return cls(*(float(f"{figure:.{_DIGITS - 1}e}") for figure in figures))


def encode(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Encode ``array``, whose elements are ``dtype``: the planes that ``scheme.encode`` gives.

    Raises:
        SchemeError: a value is not finite, or the scheme cannot hold the tensor.
    """
    fast = _FAST.get(type(scheme)) if importlib.util.find_spec("torch") else None
    return fast(scheme, array, dtype) if fast else scheme.encode(array, dtype)


def measure(scheme: Scheme, planes: Mapping[str, np.ndarray], array: np.ndarray, dtype: str) -> EncodingError | None:
    """The error that encoding ``array`` to ``planes`` made; ``None`` if there is none."""
    if scheme.name == dtype or not array.size or not importlib.util.find_spec("torch"):
        return None
    import torch

    rows, columns = matrix(array.shape)
    stride = _STRIDE if rows >= _MANY_ROWS else 1
    source = to_torch(array, dtype).view(rows, columns)[::stride]
    stored = _rows_of(scheme, planes, array.shape, dtype, stride)
    step = min(max(1, _MEASURED // columns), len(source))
    buffers = [torch.empty(step, columns, dtype=kind) for kind in (torch.float32, torch.float32, torch.float64)]
    noise = signal = largest = 0.0
    for start in range(0, len(source), step):
        part = slice(start, min(start + step, len(source)))
        x, difference, wide = (buffer[: part.stop - start] for buffer in buffers)
        x.copy_(source[part])
        stored(part, difference)
        difference.sub_(x)
        largest = max(largest, float(difference.amax()), -float(difference.amin()))
        noise += _sum_of_squares(wide.copy_(difference))
        signal += _sum_of_squares(wide.copy_(x))
    return EncodingError.of(noise, signal, largest)


def _sum_of_squares(values: torch.Tensor) -> float:
    import torch

    return float(torch.dot(values.view(-1), values.view(-1)))


def _rows_of(
    scheme: Scheme, planes: Mapping[str, np.ndarray], shape: tuple[int, ...], dtype: str, stride: int
) -> Callable[[slice, torch.Tensor], object]:
    """What decodes a stretch of every ``stride``-th row into a buffer: for the commonest schemes without numpy."""
    import torch

    rows, columns = matrix(shape)
    if isinstance(scheme, Plain):
        values = to_torch(planes["values"], scheme.name).view(rows, columns)[::stride]
        return lambda part, out: out.copy_(values[part])
    if isinstance(scheme, Int8):
        scales = to_torch(planes["row_absmax"] * np.float32(1 / 127), "f32").view(rows, 1)[::stride]
        codes = to_torch(planes["codes"], "i8").view(rows, columns)[::stride]
        return lambda part, out: out.copy_(codes[part]).mul_(scales[part])
    indices = np.arange(0, rows, stride)
    return lambda part, out: out.copy_(torch.from_numpy(scheme.decode_rows(planes, shape, dtype, indices[part])))


def _int8(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """``Int8.encode`` in torch: the same operations in the same order."""
    import torch

    rows = to_torch(array, dtype).view(matrix(array.shape))
    result = np.empty(array.shape, np.int8)  # numpy asks for huge pages, torch does not
    codes = torch.from_numpy(result).view(rows.shape)
    absmax = np.zeros(len(rows), np.float32)
    step = min(max(1, _PIECE * torch.get_num_threads() // max(rows.shape[1], 1)), max(len(rows), 1))
    buffer, highest, lowest = torch.empty(step, rows.shape[1]), torch.empty(step), torch.empty(step)
    for start in range(0, len(rows) if rows.numel() else 0, step):
        part = slice(start, min(start + step, len(rows)))
        size = part.stop - start
        u, high, low = buffer[:size], highest[:size], lowest[:size]
        u.copy_(rows[part] if dtype == "f16" else rows[part].to(torch.float16))
        # Two passes that write nothing beat one that does. What is left is a number a row, and numpy's calls are short.
        torch.amax(u, 1, out=high)
        torch.amin(u, 1, out=low)
        top = np.maximum(high.numpy(), -low.numpy(), out=absmax[part])
        # A row of zeros stays zero under any scale; 1e-8 is below float16's smallest number.
        scale = np.float32(1) / np.maximum(top, np.float32(1e-8)) * np.float32(127)
        u.mul_(torch.from_numpy(scale)[:, None])
        codes[part] = u.round_()
    if not np.isfinite(absmax).all():
        raise SchemeError("a value is not finite, or beyond float16's 65504, which int8 goes through")
    return {"codes": result, "row_absmax": absmax.reshape(array.shape[:-1])}


# Integer of the same width, the bits of a magnitude, and infinity's: |x| is finite if its bits are below.
_INFINITY = {
    "f16": ("i16", 0x7FFF, 0x7C00),
    "bf16": ("i16", 0x7FFF, 0x7F80),
    "f32": ("i32", 0x7FFF_FFFF, 0x7F80_0000),
}


def _plain(scheme: Scheme, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """``Plain.encode`` in torch: the values as they are, or rounded to another float type."""
    import torch

    if scheme.name not in _INFINITY or dtype not in _INFINITY:
        return scheme.encode(array, dtype)
    values = to_torch(array, dtype)
    result = values if scheme.name == dtype else torch.empty(values.shape, dtype=torch_dtypes()[scheme.name])
    if result is not values:
        for source, target in zip(_pieces(values), _pieces(result), strict=True):
            target.copy_(source.to(torch.float32))  # rounds to nearest even, as the scheme does
    integer, magnitude, infinity = _INFINITY[scheme.name]
    bits = _pieces(result.view(torch_dtypes()[integer]))
    if any(int(piece.bitwise_and(magnitude).max()) >= infinity for piece in bits):
        raise SchemeError(f"a value is not finite, or too large for {scheme.name}")
    return {"values": array if result is values else to_numpy(result)[0]}


def _pieces(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """``values`` flat, in pieces; none for an empty tensor."""
    flat = values.reshape(-1)
    return iter(flat.split(_PIECE) if len(flat) else ())


_FAST: dict[type[Scheme], Callable[[Scheme, np.ndarray, str], dict[str, np.ndarray]]] = {Int8: _int8, Plain: _plain}
