"""Compiled encoders: what the schemes' numpy code computes, bit for bit, in one pass over a row or a block.

The module ``kernels`` is built when the package is installed, where there is a compiler. It is used on processors
that have AVX2; ``available`` says whether it is here and may be, and ``AIBIT_NATIVE=0`` in the environment turns it
off. Arrays must be contiguous, in the storage of ``DTYPES``; their sizes are checked, and ValueError raised. All
functions release the GIL.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

try:
    from . import kernels as _compiled  # type: ignore[attr-defined]
except ImportError:  # no compiler when this was installed, or no installation
    _compiled = None

kernels: Any = _compiled
available: bool = kernels is not None and os.environ.get("AIBIT_NATIVE") != "0" and kernels.supported()


def int8_rows(values: np.ndarray, dtype: str, codes: np.ndarray, absmax: np.ndarray) -> bool:
    """Encode ``values`` [rows, columns] as ``schemes.int8`` does, into i8 [rows, columns] and f32 [rows].

    Returns:
        False where a value is not finite, or not in float16; codes and scales are then incomplete.
    """
    return kernels.int8_rows(dtype, values, *values.shape, codes, absmax)


def four_bit_blocks(
    values: np.ndarray, dtype: str, bounds: np.ndarray, order: np.ndarray, codes: np.ndarray, absmax: np.ndarray
) -> bool:
    """Encode ``values`` [blocks, size], a multiple of 32, as ``schemes.fourbit`` does.

    Args:
        values: whole blocks.
        dtype: of the values: f16, bf16 or f32.
        bounds: f32 [15], ascending.
        order: u8 [16], the code of each rank.
        codes: u8 [blocks * size / 2], for the result.
        absmax: f32 [blocks], for the result.

    Returns:
        False where a value is not finite; codes and scales are then incomplete.
    """
    return kernels.four_bit_blocks(dtype, values, *values.shape, bounds, order, codes, absmax)


def error_sums(values: np.ndarray, dtype: str, rows: range, decoded: np.ndarray) -> tuple[float, float, float]:
    """Of ``decoded`` f32 [len(rows), columns] against these rows of ``values`` [rows, columns].

    Returns:
        The sum of squared differences and that of squared values, added in float64, and the largest difference.
    """
    return kernels.error_sums(dtype, values, *values.shape, rows.start, rows.step, len(rows), decoded)


def int8_error_sums(
    values: np.ndarray, dtype: str, step: int, codes: np.ndarray, scales: np.ndarray
) -> tuple[float, float, float]:
    """The same of every ``step``-th row, against codes i8 [rows, columns] times scales f32 [rows]."""
    return kernels.int8_error_sums(dtype, values, *values.shape, step, codes, scales)
