"""Rotates vectors by a randomized Hadamard matrix: random signs, then a matrix of +-1 over the square root of its size.

The matrix is the Kronecker product of Sylvester's of size 2^k and one of Paley's two constructions, the smallest that
leaves a power of two: 12, 20, 28, 36, 60, ... (R. Paley, On orthogonal matrices, 1933). Where there is none, the factor
is a discrete Hartley matrix, ``(cos + sin)(2 pi i j / m)``, which is orthogonal for every m.

Results are the same on every machine. Values are rounded to multiples of 2^-40 of the largest in their row first, far
below what any dtype of a model keeps: sums of +-1 times such values are exact in float64, in whatever order a library
takes them. Products with a Hartley matrix are summed one by one; its entries are those of the machine's cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

# Of a value. Sums over the m <= 4,096 of a factor fit into the 53 bits of float64; Sylvester's are taken in one order.
_BITS = 40


@dataclass(frozen=True)
class Rotation:
    """Hold an orthogonal matrix Q [size, size], made of random signs and a fixed factor."""

    signs: np.ndarray  # f64 [size], +1 and -1

    @classmethod
    def seeded(cls, size: int, *seed: int) -> Rotation:
        """Make a rotation whose signs come from PCG64, whose bits are the same in every version of numpy."""
        bits = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(size) >> np.uint64(63)
        return cls(1.0 - 2.0 * bits.astype(np.float64))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return ``x @ Q`` for x f64 [..., n * size]: each stretch of ``size`` columns is rotated by itself."""
        size = len(self.signs)
        factor = factor_of(size)
        m = len(factor)
        count = size // m
        made = _times((_fixed(x.reshape(-1, size)) * self.signs).reshape(-1, m), factor).reshape(-1, size)
        half = 1
        while half < count:  # Sylvester's, by halves
            pairs = made.reshape(len(made), count // (2 * half), 2, half * m)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            made = np.stack([first + second, first - second], 2)
            half *= 2
        return (made / math.sqrt(size)).reshape(x.shape)


def _fixed(rows: np.ndarray) -> np.ndarray:
    """Round each row, f64 [rows, n], to multiples of 2^-40 of a power of two above its largest magnitude."""
    _, exponents = np.frexp(np.abs(rows).max(1, initial=0, keepdims=True))
    return np.ldexp(np.rint(np.ldexp(rows, _BITS - exponents)), exponents - _BITS)


def _times(rows: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return ``rows @ factor`` with sums that do not depend on their order, or are taken in order."""
    if len(factor) == 1:
        return rows
    if (np.abs(factor) == 1).all():
        return rows @ factor
    sums = rows[:, :1] * factor[0]
    for row in range(1, len(factor)):
        sums += rows[:, row : row + 1] * factor[row]
    return sums


@cache
def factor_of(size: int) -> np.ndarray:
    """Return a matrix H [m, m] with ``H @ H.T = m * I``, where ``size / m`` is a power of two."""
    odd = size >> ((size & -size).bit_length() - 1)
    for m in (odd << shift for shift in range((size // odd).bit_length())):
        if (found := _hadamard(m)) is not None:
            return found
    angles = 2 * math.pi / odd * (np.outer(np.arange(odd), np.arange(odd)) % odd)
    return np.cos(angles) + np.sin(angles)


def _hadamard(m: int) -> np.ndarray | None:
    """Return a matrix of +-1 with orthogonal rows, f64 [m, m], if one is known here that is no power of two's."""
    if m == 1:
        return np.ones((1, 1))
    if m % 4:
        return None
    if _is_prime(m - 1):  # 3 modulo 4: the core is skew
        return np.eye(m) + np.block([[np.zeros((1, 1)), np.ones((1, m - 1))], [-np.ones((m - 1, 1)), _core(m - 1)]])
    half = m // 2
    if half % 4 == 2 and _is_prime(half - 1):  # 1 modulo 4: the core is symmetric
        core = np.block([[np.zeros((1, 1)), np.ones((1, half - 1))], [np.ones((half - 1, 1)), _core(half - 1)]])
        return np.kron(core, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(np.eye(half), [[1.0, -1.0], [-1.0, -1.0]])
    return None


def _core(prime: int) -> np.ndarray:
    """Return Jacobsthal's matrix: 1 where the difference of row and column is a square modulo the prime, else -1."""
    squares = np.full(prime, -1.0)
    squares[np.arange(1, prime) ** 2 % prime] = 1.0
    squares[0] = 0.0
    return squares[(np.arange(prime)[:, None] - np.arange(prime)) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
