"""How far decoded values are from the source's."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .. import native
from ..interop import to_torch
from ..schemes import Scheme
from ..schemes.base import matrix
from ..schemes.fourbit import FourBit
from ..schemes.int8 import Int8
from ..schemes.plain import Plain

if TYPE_CHECKING:
    import torch

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


def measure(scheme: Scheme, planes: Mapping[str, np.ndarray], array: np.ndarray, dtype: str) -> EncodingError | None:
    """The error that encoding ``array`` to ``planes`` made; ``None`` if there is none."""
    return EncodingError.of(*sums(scheme, planes, array, dtype, measured(matrix(array.shape)[0])))


def measured(count: int) -> range:
    """Which of ``count`` rows of a tensor the error is measured on."""
    return range(0, count, _STRIDE if count >= _MANY_ROWS else 1)


def sums(
    scheme: Scheme, planes: Mapping[str, np.ndarray], array: np.ndarray, dtype: str, rows: range
) -> tuple[float, float, float]:
    """What ``EncodingError.of`` takes: sums of squares of errors and of values in these rows, and the largest error."""
    if scheme.name == dtype or not array.size or not len(rows) or not _has_torch():
        return 0.0, 0.0, 0.0
    import torch

    shape = matrix(array.shape)
    if native.available and isinstance(scheme, Int8):
        first, values = rows.start, np.ascontiguousarray(array).reshape(shape)
        codes, scales = planes["codes"].reshape(shape), _scales(planes).reshape(-1)
        return native.int8_error_sums(values[first:], dtype, rows.step, codes[first:], scales[first:])
    stored, differ = _rows_of(scheme, planes, array.shape, dtype, rows), _sums(array, dtype, rows)
    step = min(max(1, _MEASURED // shape[1]), len(rows))
    buffer = torch.empty(step, shape[1])
    noise = signal = largest = 0.0
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        decoded = buffer[: part.stop - start]
        stored(part, decoded)
        more_noise, more_signal, most = differ(part, decoded)
        noise, signal, largest = noise + more_noise, signal + more_signal, max(largest, most)
    return noise, signal, largest


@cache
def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _scales(planes: Mapping[str, np.ndarray]) -> np.ndarray:
    """What int8's codes are multiplied by, f32, one a row."""
    return planes["row_absmax"] * np.float32(1 / 127)


def _sums(array: np.ndarray, dtype: str, rows: range) -> Callable[[slice, torch.Tensor], tuple[float, float, float]]:
    """What compares a stretch of these rows with its decoded values: squares added up, the largest."""
    shape = matrix(array.shape)
    if native.available:
        values = np.ascontiguousarray(array).reshape(shape)
        return lambda part, decoded: native.error_sums(values, dtype, rows[part], decoded.numpy())
    import torch

    source = to_torch(array, dtype).view(shape)[rows.start :: rows.step]
    most = max(1, _MEASURED // shape[1])
    wide, x = (torch.empty(most, shape[1], dtype=kind) for kind in (torch.float64, torch.float32))

    def sums(part: slice, decoded: torch.Tensor) -> tuple[float, float, float]:
        size = len(decoded)
        difference = decoded.sub_(x[:size].copy_(source[part]))
        largest = max(float(difference.amax()), -float(difference.amin()))
        squares = (_sum_of_squares(wide[:size].copy_(values)) for values in (difference, x[:size]))
        return *squares, largest  # type: ignore[return-value]

    return sums


def _sum_of_squares(values: torch.Tensor) -> float:
    import torch

    return float(torch.dot(values.view(-1), values.view(-1)))


def _rows_of(
    scheme: Scheme, planes: Mapping[str, np.ndarray], shape: tuple[int, ...], dtype: str, chosen: range
) -> Callable[[slice, torch.Tensor], object]:
    """What decodes a stretch of the chosen rows into a buffer: for the commonest schemes without numpy."""
    import torch

    rows, columns = matrix(shape)
    every = slice(chosen.start, None, chosen.step)
    if isinstance(scheme, Plain):
        values = to_torch(planes["values"], scheme.name).view(rows, columns)[every]
        return lambda part, out: out.copy_(values[part])
    if isinstance(scheme, Int8):
        scales = to_torch(_scales(planes), "f32").view(rows, 1)[every]
        codes = to_torch(planes["codes"], "i8").view(rows, columns)[every]
        return lambda part, out: out.copy_(codes[part]).mul_(scales[part])
    if native.available and isinstance(scheme, FourBit) and columns % scheme.block_size == 0:
        packed, absmax = scheme.whole_rows(planes, (rows, columns), every)
        return lambda part, out: scheme.decode_into(packed[part], absmax[part], out.numpy())
    indices = np.arange(rows)[every]
    return lambda part, out: out.copy_(torch.from_numpy(scheme.decode_rows(planes, shape, dtype, indices[part])))
