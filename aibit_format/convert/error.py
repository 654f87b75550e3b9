"""Measures how far decoded values are from those of the source.

The functions of the capability ``errors_fast`` are also here, for schemes that need not decode rows in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import native
from ..dtypes import DTYPES, to_float32
from ..interop import has_torch, to_torch
from ..schemes import Scheme, capabilities
from ..schemes.base import FLOATS, matrix
from ..schemes.fourbit import FourBit
from ..schemes.int8 import Int8
from ..schemes.plain import Plain

Planes = Mapping[str, np.ndarray]
Sums = tuple[float, float, float]  # the sum of squared errors, the sum of squared values, the largest error
Decode = Callable[[slice, np.ndarray], None]  # decodes a chunk of the measured rows into a buffer, f32

_MEASURED = 1 << 16  # elements measured at a time
_DIGITS = 6  # significant digits of the figures
_STRIDE = 16  # in tensors with many rows, the error is measured on every sixteenth
_MANY_ROWS = 1024  # the least number of rows that are many


@dataclass(frozen=True, slots=True)
class EncodingError:
    """Hold the error of decoded values against the source's: on all rows, or every sixteenth if there are 1024 or more.

    relative_rms: sqrt(sum((decoded - x)^2) / sum(x^2)).
    largest: max |decoded - x|.
    signal_to_noise_db: 10 log10(sum(x^2) / sum((decoded - x)^2)).

    The figures are stored in the file, so they must not depend on the order of additions, which differs between
    machines. Therefore sums are in float64, and figures are rounded to six significant digits.
    """

    relative_rms: float
    largest: float
    signal_to_noise_db: float

    @classmethod
    def of(cls, noise: float, signal: float, largest: float) -> EncodingError | None:
        """Compute the figures from ``Sums``; returns ``None`` if the tensor was stored exactly."""
        if noise == 0 or signal == 0:
            return None
        figures = math.sqrt(noise / signal), largest, 10 * math.log10(signal / noise)
        return cls(*(float(f"{figure:.{_DIGITS - 1}e}") for figure in figures))


def measure(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str) -> EncodingError | None:
    """Measure the error of ``planes`` that encode ``array``; returns ``None`` if there is none."""
    return EncodingError.of(*sums(scheme, planes, array, dtype, measured(matrix(array.shape)[0])))


def measured(count: int) -> range:
    """Return the indices of the rows, of ``count``, on which the error is measured."""
    return range(0, count, _STRIDE if count >= _MANY_ROWS else 1)


def sums(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums for ``EncodingError.of`` over these rows of a tensor seen as a matrix."""
    if scheme.name == dtype or not array.size or not len(rows):
        return 0.0, 0.0, 0.0
    if dtype not in FLOATS:  # the faster ways know no others
        array, dtype = to_float32(array, dtype), "f32"
    fast = capabilities.find(scheme, "errors_fast")
    if fast is not None:
        return fast(scheme, planes, array, dtype, rows)
    return _by_rows(scheme, planes, array, dtype, rows)


def plain_sums(scheme: Plain, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums for rounding to another dtype."""
    if not has_torch() or DTYPES[scheme.name].is_packed:
        return _by_rows(scheme, planes, array, dtype, rows)
    import torch

    values = to_torch(planes["values"], scheme.name).view(matrix(array.shape))[rows.start :: rows.step]

    def decode(part: slice, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(values[part])

    return _add_up(decode, array, dtype, rows)


def int8_sums(scheme: Int8, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums for int8 rows; compiled code, if there is any, needs one pass over codes and values."""
    shape = matrix(array.shape)
    codes, scales = planes["codes"].reshape(shape), (planes["row_absmax"] * np.float32(1 / 127)).reshape(-1)
    if native.available:
        first, values = rows.start, np.ascontiguousarray(array).reshape(shape)
        return native.int8_error_sums(values[first:], dtype, rows.step, codes[first:], scales[first:])
    codes, scales = codes[rows.start :: rows.step], scales[rows.start :: rows.step, None]

    def decode(part: slice, out: np.ndarray) -> None:
        np.multiply(codes[part], scales[part], out=out, dtype=np.float32)

    return _add_up(decode, array, dtype, rows)


def four_bit_sums(scheme: FourBit, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums for 4-bit blocks; compiled code decodes rows if they consist of whole blocks."""
    count, columns = matrix(array.shape)
    if not native.available or columns % scheme.block_size:
        return _by_rows(scheme, planes, array, dtype, rows)
    packed, absmax = scheme.whole_rows(planes, (count, columns), slice(rows.start, None, rows.step))

    def decode(part: slice, out: np.ndarray) -> None:
        scheme.decode_into(packed[part], absmax[part], out)

    return _add_up(decode, array, dtype, rows)


def _by_rows(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums with the scheme's own decoding of rows."""
    indices = np.arange(rows.start, rows.stop, rows.step)

    def decode(part: slice, out: np.ndarray) -> None:
        out[:] = scheme.decode_rows(planes, array.shape, dtype, indices[part])

    return _add_up(decode, array, dtype, rows)


def _add_up(decode: Decode, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Compute the sums by decoding rows in chunks that stay in cache, and comparing each with its values."""
    columns = matrix(array.shape)[1]
    step = min(max(1, _MEASURED // columns), len(rows))
    buffer, compare = np.empty((step, columns), np.float32), _comparison(array, dtype, rows)
    noise = signal = largest = 0.0
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        decoded = buffer[: part.stop - start]
        decode(part, decoded)
        more_noise, more_signal, most = compare(part, decoded)
        noise, signal, largest = noise + more_noise, signal + more_signal, max(largest, most)
    return noise, signal, largest


def _comparison(array: np.ndarray, dtype: str, rows: range) -> Callable[[slice, np.ndarray], Sums]:
    """Return a function that computes the sums of a chunk of these rows from its decoded values.

    The function may overwrite the decoded values.
    """
    shape = matrix(array.shape)
    if native.available:
        values = np.ascontiguousarray(array).reshape(shape)
        return lambda part, decoded: native.error_sums(values, dtype, rows[part], decoded)
    source = array.reshape(shape)[rows.start : rows.stop : rows.step]

    def compare(part: slice, decoded: np.ndarray) -> Sums:
        values = _wide(source[part], dtype)
        difference = np.subtract(decoded, values, out=decoded)
        largest = float(np.abs(difference).max())
        noise, signal = (float(np.vdot(x, x)) for x in (difference.astype(np.float64), values.astype(np.float64)))
        return noise, signal, largest

    return compare


def _wide(values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert values to float32: with torch if it is installed, because it converts float16 in vectors."""
    return to_torch(values, dtype).float().numpy() if has_torch() else to_float32(values, dtype)
