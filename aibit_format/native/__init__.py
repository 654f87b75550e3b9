"""Encodes, decodes and multiplies with compiled code, bit for bit as the schemes' numpy code and bitsandbytes' layers.

The module ``kernels`` is built when the package is installed, if there is a compiler. It is used on processors with
AVX2; ``available`` tells whether it can be used, and ``AIBIT_NATIVE=0`` in the environment turns it off. Arrays must be
contiguous, in the storage of ``DTYPES``, at any address. Before memory is touched, an array of the wrong size and a
negative size raise ValueError, and sizes of more bytes than can be addressed OverflowError. All functions release the
GIL.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

try:
    from . import kernels as _compiled  # type: ignore[attr-defined]
except ImportError:  # there was no compiler when this was installed, or it runs from a source tree
    _compiled = None

kernels: Any = _compiled
available: bool = kernels is not None and os.environ.get("AIBIT_NATIVE") != "0" and kernels.supported()


def int8_rows(values: np.ndarray, dtype: str, codes: np.ndarray, absmax: np.ndarray) -> bool:
    """Encode ``values`` [rows, columns] as ``schemes.int8`` does, into i8 [rows, columns] and f32 [rows].

    Returns:
        False if a value is not finite, or not finite in float16; codes and scales are then incomplete.
    """
    return kernels.int8_rows(dtype, values, *values.shape, codes, absmax)


def finite(values: np.ndarray, dtype: str) -> bool:
    """Tell whether all ``values``, which are f16, bf16 or f32, are finite."""
    return kernels.finite(dtype, values, values.size)


def four_bit_blocks(
    values: np.ndarray, dtype: str, bounds: np.ndarray, order: np.ndarray, codes: np.ndarray, absmax: np.ndarray
) -> bool:
    """Encode ``values`` [blocks, size] as ``schemes.fourbit`` does.

    Args:
        values: whole blocks, their size a multiple of 32.
        dtype: of the values: f16, bf16 or f32.
        bounds: f32 [15], ascending.
        order: u8 [16], the code of each rank.
        codes: u8 [blocks * size / 2], filled with the result.
        absmax: f32 [blocks], filled with the result.

    Returns:
        False if a value is not finite; codes and scales are then incomplete.
    """
    return kernels.four_bit_blocks(dtype, values, *values.shape, bounds, order, codes, absmax)


def four_bit_values(
    codes: np.ndarray, dtype: str, book: np.ndarray, absmax: np.ndarray, block_size: int, out: np.ndarray,
    threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Decode whole blocks as ``schemes.fourbit`` does: ``out`` = book[code] * absmax, rounded to ``dtype``.

    Args:
        codes: u8 [blocks * block_size / 2], the first of two elements in the high nibble.
        dtype: to which values are rounded: f16, bf16 or f32.
        book: f32 [16].
        absmax: f32 [blocks].
        block_size: a multiple of 32.
        out: [blocks * block_size], filled with the result, in that dtype or f32.
        threads, parallel: as for ``int8_product``.
    """
    kernels.four_bit_values(
        dtype, absmax.size, block_size, codes, book, absmax, out.itemsize, out, threads, parallel
    )  # fmt: skip


def nested_scales(codes: np.ndarray, book: np.ndarray, absmax: np.ndarray, offset: float, out: np.ndarray) -> None:
    """Decode nested scales as ``schemes.fourbit`` does: ``out`` = book[code] * absmax + offset.

    Args:
        codes: u8 [count].
        book: f32 [256].
        absmax: f32 [count / 256, rounded up].
        offset: rounded to float32.
        out: f32 [count], filled with the result.
    """
    kernels.nested_scales(codes.size, codes, book, absmax, offset, out)


def four_bit_product(
    inputs: np.ndarray, codes: np.ndarray, book: np.ndarray, absmax: np.ndarray, block_size: int, out: np.ndarray,
    threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Multiply inputs with a 4-bit weight in float32, without rounding decoded values; meant for few rows.

    Args:
        inputs: f32 [rows, columns].
        codes: u8 [features, columns / 2].
        book: f32 [16].
        absmax: f32 [features, columns / block_size].
        block_size: 32 or a multiple of 64, that divides the columns.
        out: f32 [rows, features], filled with inputs @ weight.T.
        threads, parallel: as for ``int8_product``.
    """
    kernels.four_bit_product(
        *inputs.shape, len(codes), inputs, codes, book, absmax, block_size, out, threads, parallel
    )  # fmt: skip


def error_sums(values: np.ndarray, dtype: str, rows: range, decoded: np.ndarray) -> tuple[float, float, float]:
    """Compare ``decoded`` f32 [len(rows), columns] with these rows of ``values`` [rows, columns].

    Returns:
        The sum of squared differences and that of squared values, added in float64, and the largest difference.
    """
    return kernels.error_sums(dtype, values, *values.shape, rows.start, rows.step, len(rows), decoded)


def int8_error_sums(
    values: np.ndarray, dtype: str, step: int, codes: np.ndarray, scales: np.ndarray
) -> tuple[float, float, float]:
    """Compare every ``step``-th row with codes i8 [rows, columns] times scales f32 [rows]; see ``error_sums``."""
    return kernels.int8_error_sums(dtype, values, *values.shape, step, codes, scales)


def int8_product(
    inputs: np.ndarray, row_scales: np.ndarray, codes: np.ndarray, scales: np.ndarray, factor: float,
    bias: np.ndarray | None, out: np.ndarray, dtype: str, threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute ``out`` [rows, features] = (inputs @ codes.T) * (row_scales[:, None] * scales) * factor + bias.

    Sums are exact for up to 131,071 columns, as they are kept in 32 bits. The rest are float32 operations in this
    order, as in bitsandbytes' ``int8_mm_dequant``.

    Args:
        inputs: i16 [rows, columns padded with zeros to a multiple of 16], of values from -128 to 127.
        row_scales: f32 [rows].
        codes: i8 [features, columns].
        scales: f32 [features].
        factor: by which every product is multiplied.
        bias: f32 [features], or None.
        out: filled with the result.
        dtype: to which the result is rounded: f16, bf16 or f32.
        threads: the number of threads to use, 1 to 4096.
        parallel: from ``gomp_parallel`` of the OpenMP runtime that owns the threads; None: this thread alone.
    """
    features, columns = codes.shape
    kernels.int8_product(
        dtype, len(inputs), columns, features, inputs, row_scales, codes, scales, factor, bias, out, threads, parallel
    )


def int8_linear(
    inputs: np.ndarray, dtype: str, threshold: float, codes: np.ndarray, scales: np.ndarray, factor: float,
    bias: np.ndarray | None, out: np.ndarray, threads: int = 1, parallel: object | None = None,
) -> bool:  # fmt: skip
    """Quantize inputs as bitsandbytes' ``int8_vectorwise_quant`` does, then compute ``int8_product``.

    Args:
        inputs: [rows, columns].
        dtype: of inputs and result: f16, bf16 or f32.
        threshold: the magnitudes of all inputs must be below it.
        codes, scales, factor, bias, out, threads, parallel: as for ``int8_product``.

    Returns:
        False if a magnitude is not below the threshold, or NaN; there is no result then.
    """
    return kernels.int8_linear(
        dtype, *inputs.shape, len(codes), inputs, codes, scales, factor, bias, out, threads, parallel, threshold
    )


def float_linear(
    inputs: np.ndarray, dtype: str, codes: np.ndarray, scales: np.ndarray, factor: float, bias: np.ndarray | None,
    out: np.ndarray, threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute (inputs @ codes.T) * scales * factor + bias, in float32 and then rounded; meant for few rows.

    Args:
        inputs: [rows, columns].
        dtype: of inputs and result: f16, bf16 or f32.
        codes, scales, factor, bias, out, threads, parallel: as for ``int8_product``.
    """
    kernels.float_linear(dtype, *inputs.shape, len(codes), inputs, codes, scales, factor, bias, out, threads, parallel)


def leaf_digests(data: np.ndarray, size: int, digests: np.ndarray) -> None:
    """Fill u64 ``digests`` with the xxh3_64 of each ``size`` bytes, 241 or more, of u8 ``data``."""
    kernels.leaf_digests(data, len(digests), size, digests)


def gomp_parallel(path: str) -> object | None:
    """Look up ``GOMP_parallel`` in the OpenMP runtime at ``path``, which this process has loaded already.

    Returns:
        A capsule, which the products take as ``parallel``. None if the library is not loaded, if it has no such
        function, or if there is no compiled code.
    """
    return None if kernels is None else kernels.gomp_parallel(path)


def packed_targets() -> list[str]:
    """Return the kinds of processors that products of packed weights are built for and run here, the fastest first."""
    return kernels.packed_targets() if hasattr(kernels, "packed_targets") else []


def packed_product(
    inputs: np.ndarray, dtype: str, weight: tuple[Any, ...], bias: np.ndarray | None, out: np.ndarray,
    activations: str = "float32", target: str | None = None, threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute inputs @ weight.T + bias, with a weight that is decoded in registers; meant for few rows.

    Sums are float32 sums of products of the decoded values. With ``activations`` "int16" or "int8", inputs are first
    rounded to whole multiples of the largest magnitude of 256 columns divided by 32767, or of 32 divided by 127, and
    products of codes are added exactly; formats of floats take float32 inputs all the same.

    Args:
        inputs: [rows, columns].
        dtype: of inputs and result: f16, bf16 or f32.
        weight: its format, planes and numbers, as ``torch.kernels.packed.Format.weight`` returns them.
        bias: f32 [features], or None.
        out: [rows, features], filled with the result.
        activations: float32, int16 or int8.
        target: one of ``packed_targets``; None: the first.
        threads, parallel: as for ``int8_product``.
    """
    kernels.packed_product(
        target or packed_target, activations, dtype, *inputs.shape, out.shape[1], inputs, bias, out, threads, parallel,
        *weight,
    )  # fmt: skip


def packed_values(
    weight: tuple[Any, ...], features: int, rows: range, dtype: str, out: np.ndarray, target: str | None = None,
    threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Decode consecutive ``rows`` of the ``features`` that a packed weight has.

    Args:
        dtype: to which values are rounded: f16, bf16 or f32.
        out: [len(rows), columns], filled with the result.
        weight, target, threads, parallel: as for ``packed_product``.
    """
    kernels.packed_values(
        target or packed_target, dtype, out.shape[1], features, rows.start, len(rows), out, threads, parallel, *weight
    )


packed_target: str | None = next(iter(packed_targets()), None) if os.environ.get("AIBIT_NATIVE") != "0" else None
