"""Finds zero points without data as HQQ does: by half-quadratic splitting of a norm that forgives outliers.

Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023, and
``optimize_weights_proximal_legacy`` of https://github.com/mobiusml/hqq (core/optimize.py), with its constants: the norm
is the sum of |error|^0.7; scales stay those of the range. Codes are rounded, large errors are set apart by shrinking,
and the zero point becomes the mean of what is left, twenty times. Unlike there, each group stops for itself, and keeps
the zero point with the least mean error.

|x|^-0.3 is computed by square roots, which are the same on every machine: its exponent is that of 1/4 + 1/32 + 1/64 +
1/512 + 1/1024 = 0.2998. Results are float32; sums are in the order of ``ggml_blocks.total``.
"""

from __future__ import annotations

import numpy as np

from .ggml_blocks import inverse, total, whole

_BETA, _KAPPA, _ITERATIONS = 10.0, 1.01, 20
_SHRUNK = np.float32(0.125)  # errors up to this one are shrunk to zero, since x^1.3 < 1 / (beta * kappa^19)


def zero_points(values: np.ndarray, there: np.ndarray, scale: np.ndarray, zero: np.ndarray, largest: int) -> np.ndarray:
    """Return the zero points of groups, f32 [n].

    Args:
        values: f32 [size, n]; the size is even.
        there: 1 for each of them, or 0 for what fills a short group, f32 [size, n].
        scale, zero: to begin with, f32 [n].
        largest: the greatest code.
    """
    inverted, share = inverse(scale), inverse(total(there))
    beta = _BETA
    best, found = np.full(zero.shape, np.inf, np.float32), zero
    for _ in range(_ITERATIONS):
        codes = whole(values * inverted + zero, (0, largest))
        rest = (values - (codes - zero) * scale) * there
        error = total(np.abs(rest))
        better = error < best
        if not better.any():
            break
        best, found = np.where(better, error, best), np.where(better, zero, found)
        zero = total((codes - (values - _shrunk(rest, beta)) * inverted) * there) * share
        beta *= _KAPPA
    return found


def _shrunk(rest: np.ndarray, beta: float) -> np.ndarray:
    """Return ``sign(x) * max(|x| - |x|^-0.3 / beta, 0)``."""
    result = np.zeros_like(rest)
    large = np.abs(rest) > _SHRUNK
    if large.any():
        chosen = rest[large]
        magnitude = np.abs(chosen)
        left = magnitude - np.float32(1 / beta) / _power(magnitude)
        result[large] = np.copysign(np.maximum(left, np.float32(0)), chosen)
    return result


def _power(values: np.ndarray) -> np.ndarray:
    """Return values to the power 0.2998."""
    root, result = values, np.ones_like(values)
    for halvings in range(1, 11):
        root = np.sqrt(root)
        if halvings in (2, 5, 6, 9, 10):
            result = result * root
    return result
