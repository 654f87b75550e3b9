"""Encodes, decodes and multiplies with compiled code, bit for bit as the schemes' numpy code and bitsandbytes' layers.

The module ``kernels`` is built when the package is installed, if there is a compiler. It is used on processors with
AVX2; ``available`` tells whether it can be used, and ``AIBIT_NATIVE=0`` in the environment turns it off. Arrays must be
contiguous, in the storage of ``DTYPES``, at any address; a tensor of DLPack on a CPU, in a capsule, is an array too.
Before memory is touched, an array of the wrong size and a negative size raise ValueError, and sizes of more bytes than
can be addressed OverflowError. All functions release the GIL.
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
Array = Any  # with Python's buffers, or a tensor of DLPack in a capsule
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


def ggml_blocks(
    values: np.ndarray, dtype: str, weights: np.ndarray, search: tuple[int, ...], starts: np.ndarray,
    divisors: np.ndarray, book: np.ndarray | None, codes: np.ndarray, factors: np.ndarray, scales: np.ndarray,
) -> bool:  # fmt: skip
    """Search for the scales and codes of blocks as ``schemes.ggml_search`` does.

    Args:
        values: [blocks, elements], whole blocks.
        dtype: of the values: f16, bf16 or f32.
        weights: f32 [periods, elements]; block i has those of period i modulo their number.
        search: groups, elements of a group, least and greatest code, least and greatest factor, minima, steps, repeats,
            rounds, by value; the fields of ``ggml_blocks.Search``.
        starts: f32 [count, 2].
        divisors: f32 [count, 2].
        book: f32 [31], or None.
        codes: u8 [blocks, elements], filled with the result.
        factors: i8 [blocks, 2, groups], filled with the result.
        scales: f16 [blocks, 2], filled with the result.

    Returns:
        False if a value is not finite; the result is then incomplete.
    """
    return kernels.ggml_blocks(
        dtype, values, len(codes), weights, len(weights), starts, len(starts), divisors, len(divisors), book, codes,
        factors, scales, *search,
    )  # fmt: skip


def fit_groups(
    values: np.ndarray, dtype: str, weights: np.ndarray, grid: tuple[float, ...], book: np.ndarray | None,
    starts: np.ndarray, repeats: int, has_zero: bool, scales: np.ndarray, zeros: np.ndarray,
) -> None:  # fmt: skip
    """Fit scales and zeros to groups as ``schemes.scale_search.fit`` does.

    Args:
        values: [groups, size], finite, the size even and at most 131,072.
        dtype: of the values: f16, bf16 or f32.
        weights: f32 [periods, size]; group i has those of period i modulo their number.
        grid: kind, low, high, least, magic; see ``scale_search.Grid``.
        book: f32 [31], or None.
        starts: f32 [count, 2].
        repeats, has_zero: as there.
        scales, zeros: f32 [groups], filled with the result.
    """
    kernels.fit_groups(
        dtype, values, *values.shape, weights, len(weights), *grid, book, starts, len(starts), repeats, has_zero,
        scales, zeros,
    )  # fmt: skip


def choose_groups(
    values: np.ndarray, dtype: str, weights: np.ndarray, grid: tuple[float, ...], book: np.ndarray | None,
    scales: np.ndarray, zeros: np.ndarray, index: np.ndarray, fitted: np.ndarray,
) -> None:  # fmt: skip
    """Choose among scales and zeros of groups as ``schemes.scale_search.choose`` does.

    Args:
        values, dtype, weights, grid, book: as for ``fit_groups``.
        scales, zeros: f32 [candidates, groups], at most 255 candidates.
        index: u8 [groups], filled with the result.
        fitted: f32 [groups], filled with the result.
    """
    kernels.choose_groups(
        dtype, values, *values.shape, weights, len(weights), *grid, book, len(scales), scales, zeros, index, fitted
    )


def gptq_factor(matrix: np.ndarray, inverse: np.ndarray) -> bool:
    """Turn a symmetric ``matrix`` into its upper Cholesky factor, and the identity into the inverse of its transpose.

    Args:
        matrix: f64 [n, columns], columns a multiple of 8 and those from n on zero; what is below its diagonal is lost.
        inverse: f64 [n, columns]: the identity, and zeros.

    Returns:
        False if the matrix is not positive definite; both are then incomplete.
    """
    return kernels.gptq_factor(matrix, inverse, *matrix.shape)


def gptq_round(
    values: np.ndarray, errors: np.ndarray, codes: np.ndarray, factor: np.ndarray, group: np.ndarray,
    parameters: np.ndarray, book: np.ndarray | None, high: int, columns: range,
) -> None:  # fmt: skip
    """Round consecutive columns of a weight as ``convert.gptq`` does, each spreading its error over those after it.

    Args:
        values: f32 [all columns, rows], rows a multiple of 16: the transpose of the weight.
        errors: f32 in this shape, filled with each column's error divided by the factor's diagonal.
        codes: u8 in this shape, filled with the result.
        factor: f32 [all columns, all columns], upper.
        group: i32 [all columns]: which group each column is in.
        parameters: f32 [3, groups, rows]: scales, zeros, offsets.
        book: f32 [31], 15 bounds and 16 ascending levels, or None.
        high: the greatest code.
        columns: of which the values are changed.
    """
    kernels.gptq_round(
        *values.shape, parameters.shape[1], values, errors, codes, factor, group, parameters, book, high,
        columns.start, columns.stop,
    )  # fmt: skip


def gptq_propagate(values: np.ndarray, errors: np.ndarray, factor: np.ndarray, columns: range, later: range) -> None:
    """Subtract the errors of consecutive columns, times their factors, from ``later`` ones; see ``gptq_round``."""
    kernels.gptq_propagate(
        *values.shape, values, errors, factor, columns.start, columns.stop, later.start, later.stop
    )  # fmt: skip


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


def packed_weight(rows: int, columns: int, *parts: Any) -> object:
    """Check a weight [rows, columns] and keep it, with its arrays, as ``packed_product`` and ``packed_values`` take it.

    Args:
        parts: its format, planes and numbers, as ``torch.kernels.packed.Format.parts`` returns them.
    """
    return kernels.packed_weight(rows, columns, *parts)


def packed_product(
    weights: tuple[object, ...], rows: int, inputs: Array, dtype: str, biases: tuple[Array | None, ...],
    bias_dtype: str, outs: tuple[Array, ...], activations: str = "float32", target: str | None = None,
    threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute inputs @ weight.T + bias for each of 1 to 8 weights, decoded in registers; meant for few rows.

    Sums are float32 sums of products of the decoded values. With ``activations`` "int16" or "int8", inputs are first
    rounded to whole multiples of the largest magnitude of 256 columns divided by 32767, or of 32 divided by 127, and
    products of codes are added exactly; formats of floats take float32 inputs all the same.

    Args:
        weights: what ``packed_weight`` returned, all of as many columns.
        rows: of inputs and results.
        inputs: [rows, columns].
        dtype: of inputs and results: f16, bf16 or f32.
        biases: for each weight, [features] or None.
        bias_dtype: of the biases.
        outs: for each weight, [rows, features], filled with the result.
        activations: float32, int16 or int8.
        target: one of ``packed_targets``; None: the first.
        threads, parallel: as for ``int8_product``.
    """
    kernels.packed_product(
        weights, target or packed_target, activations, dtype, rows, inputs, biases, bias_dtype, outs, threads, parallel
    )


def packed_values(
    weight: object, rows: range, dtype: str, out: Array, target: str | None = None, threads: int = 1,
    parallel: object | None = None,
) -> None:  # fmt: skip
    """Decode consecutive ``rows`` of a packed weight.

    Args:
        dtype: to which values are rounded: f16, bf16 or f32.
        out: [len(rows), columns], filled with the result.
        weight, target, threads, parallel: as for ``packed_product``.
    """
    kernels.packed_values(weight, target or packed_target, dtype, rows.start, len(rows), out, threads, parallel)


def rms_norm(
    rows: int, columns: int, values: Array, weight: Array | None, weight_dtype: str, out: Array, dtype: str,
    epsilon: float, offset: float, rounds: bool, threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute ``out`` [rows, columns] = values / sqrt(mean(values ** 2) + epsilon) * (offset + weight), in float32.

    Args:
        values: [rows, columns], in ``dtype``.
        weight: [columns] in ``weight_dtype``, or None for 1.
        out: filled with the result, in ``dtype``.
        rounds: whether the quotient is rounded to ``dtype`` before it is multiplied.
        threads, parallel: as for ``int8_product``.
    """
    kernels.rms_norm(
        dtype, rows, columns, values, weight, weight_dtype, out, epsilon, offset, rounds, threads, parallel
    )


def rotary(
    shape: tuple[int, int, int, int], values: Array, angles: int, turned: int, cosines: Array | None,
    sines: Array | None, out: Array, capacity: int, first: int, dtype: str, threads: int = 1,
    parallel: object | None = None,
) -> None:  # fmt: skip
    """Turn pairs of elements by an angle for each position, and move heads before positions.

    The first ``turned`` elements x become x * cosines + (-second half of x, first half of x) * sines, each operation
    rounded to ``dtype``; the others stay.

    Args:
        shape: batches, positions, heads, elements.
        values: [batches, positions, heads, elements].
        angles: how many sets of cosines and sines there are: one for each batch, or one for all.
        turned: a multiple of 16.
        cosines, sines: [angles, positions, turned]; None: nothing is turned.
        out: [batches, heads, capacity, elements], in which positions ``first`` and following are filled.
        threads, parallel: as for ``int8_product``.
    """
    kernels.rotary(
        dtype, *shape, turned, angles, capacity, first, values, cosines, sines, out, threads, parallel
    )  # fmt: skip


def attention(
    shape: tuple[int, int, int, int, int, int, int, int], query: Array, key: Array, value: Array, out: Array,
    dtype: str, scale: float, cap: float = 0.0, window: int = 0, threads: int = 1, parallel: object | None = None,
) -> None:  # fmt: skip
    """Attend, in float32, from the last positions of a cache to all positions up to each; meant for few queries.

    Args:
        shape: batches, heads of keys, heads of queries for each of these, queries, keys, capacity, and the elements of
            keys and of values, multiples of 8.
        query: [batches, heads of queries, queries, elements].
        key: [batches, heads of keys, capacity, elements], of which the first ``keys`` positions are used.
        value: the same of values.
        out: [batches, queries, heads of queries, elements of values], filled with the result.
        scale: by which products of queries and keys are multiplied.
        cap: scores become cap * tanh(score / cap); 0: they stay.
        window: how many positions a query attends to, its own being the last; 0: all.
        threads, parallel: as for ``int8_product``.
    """
    kernels.attention(dtype, *shape, window, scale, cap, query, key, value, out, threads, parallel)


def gated(
    activation: str, count: int, gate: Array, up: Array | None, out: Array, dtype: str, threads: int = 1,
    parallel: object | None = None,
) -> None:  # fmt: skip
    """Compute ``out`` [count] = activation(gate) * up, the activation rounded to ``dtype``.

    Args:
        activation: silu, gelu_tanh or relu.
        up: [count], or None for 1.
        threads, parallel: as for ``int8_product``.
    """
    kernels.gated(dtype, activation, count, gate, up, out, threads, parallel)


packed_target: str | None = next(iter(packed_targets()), None) if os.environ.get("AIBIT_NATIVE") != "0" else None
