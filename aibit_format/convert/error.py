"""Measures how far decoded values are from the source's.

Schemes with a faster way than decoding rows in numpy have the capability ``errors_fast``, whose functions are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import native
from ..dtypes import to_float32
from ..interop import has_torch, to_torch
from ..schemes import Scheme, capabilities
from ..schemes.base import matrix
from ..schemes.fourbit import FourBit
from ..schemes.int8 import Int8
from ..schemes.plain import Plain

Planes = Mapping[str, np.ndarray]
Sums = tuple[float, float, float]  # of squares of errors, of squares of values; the largest error
Decode = Callable[[slice, np.ndarray], None]  # decodes a chunk of the measured rows into a buffer, f32

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
        """Return the figures of these sums of squares; ``None`` for a tensor that was stored exactly."""
        if noise == 0 or signal == 0:
            return None
        figures = math.sqrt(noise / signal), largest, 10 * math.log10(signal / noise)
        return cls(*(float(f"{figure:.{_DIGITS - 1}e}") for figure in figures))


def measure(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str) -> EncodingError | None:
    """Measure the error that encoding ``array`` to ``planes`` made; ``None`` if there is none."""
    return EncodingError.of(*sums(scheme, planes, array, dtype, measured(matrix(array.shape)[0])))


def measured(count: int) -> range:
    """Return which of ``count`` rows of a tensor the error is measured on."""
    return range(0, count, _STRIDE if count >= _MANY_ROWS else 1)


def sums(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Add up what ``EncodingError.of`` takes, over these rows of a tensor seen as a matrix."""
    if scheme.name == dtype or not array.size or not len(rows):
        return 0.0, 0.0, 0.0
    fast = capabilities.find(scheme, "errors_fast")
    if fast is not None:
        return fast(scheme, planes, array, dtype, rows)
    return _by_rows(scheme, planes, array, dtype, rows)


def plain_sums(scheme: Plain, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Add up the errors of rounding to another dtype."""
    if not has_torch():
        return _by_rows(scheme, planes, array, dtype, rows)
    import torch

    values = to_torch(planes["values"], scheme.name).view(matrix(array.shape))[rows.start :: rows.step]

    def decode(part: slice, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(values[part])

    return _add_up(decode, array, dtype, rows)


def int8_sums(scheme: Int8, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Add up the errors of int8 rows: in one compiled pass over codes and values where there is compiled code."""
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
    """Add up the errors of 4-bit blocks; compiled code decodes rows that are made of whole blocks."""
    count, columns = matrix(array.shape)
    if not native.available or columns % scheme.block_size:
        return _by_rows(scheme, planes, array, dtype, rows)
    packed, absmax = scheme.whole_rows(planes, (count, columns), slice(rows.start, None, rows.step))

    def decode(part: slice, out: np.ndarray) -> None:
        scheme.decode_into(packed[part], absmax[part], out)

    return _add_up(decode, array, dtype, rows)


def _by_rows(scheme: Scheme, planes: Planes, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Add up errors by the scheme's own decoding of rows."""
    indices = np.arange(rows.start, rows.stop, rows.step)

    def decode(part: slice, out: np.ndarray) -> None:
        out[:] = scheme.decode_rows(planes, array.shape, dtype, indices[part])

    return _add_up(decode, array, dtype, rows)


def _add_up(decode: Decode, array: np.ndarray, dtype: str, rows: range) -> Sums:
    """Decode rows in chunks that stay in cache, and compare each with its values."""
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
    """Return the function that compares a chunk of these rows with its decoded values, which it may overwrite."""
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
    """Widen values to float32: by torch where it is there, which has vector instructions for half floats."""
    return to_torch(values, dtype).float().numpy() if has_torch() else to_float32(values, dtype)
