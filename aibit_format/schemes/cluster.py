"""Implements ``cluster``: a codebook of ``2 ** bits`` values per tensor, found by k-means, and packed codes.

A code has 2 to 8 bits.

The planes are ``codes`` u8, the tensor's shape with ``ceil(K * bits / 8)`` in place of the last dimension K (each row
starts on a byte, the first code is in the highest bits, spare bits are zero), and ``codebook`` f32 [2 ** bits].
``x ~ codebook[code]``. The codebook is strictly increasing up to its largest value. If the tensor has fewer distinct
values, that value also fills the remaining entries, which no code refers to.

The source is rounded to float16, which leaves 65,536 values at most: k-means runs on their histogram, by Lloyd's
algorithm in float64, with sums taken as differences of cumulative sums. Its only errors are float64's roundings,
which are the same on every machine: sequential additions, square roots, no libm, no threads. Each iteration assigns
every value to its nearest centre (by midpoints; on a midpoint, the lower centre) and moves each centre to the mean of
its values, or leaves it if it has none; it ends when no value changes its centre, or after 1000 iterations. A tensor of
at most ``2 ** bits`` distinct values has exactly these as its codebook.

Lloyd's algorithm finds a minimum near its starting point. Centres start at quantiles ``(i + 1/2) / 2^bits``, not of the
values but of their density raised to the power 3/8: quantiles of the values would leave rare, large ones without a
centre. The best power for many centres is 1/3; 3/8 is close, and needs only square roots.
See Lloyd, Least Squares Quantization in PCM, 1982 (the algorithm); Panter and Dite, Quantization Distortion in
Pulse-Count Modulation with Nonuniform Spacing of Levels, 1951 (the power); Han et al., Deep Compression, 2016
(codebooks for weights).

Error, relative to the source rounded to float16: between two neighbours in the codebook at most half their distance;
beyond the ends, the distance to them, which depends on the data. The rounding loses at most 2^-11 of a value, or 2^-25
below 2^-14. Bits per weight: ``bits`` + 2^bits * 32 / elements, plus up to 7 bits per row.
A value that is not finite, or beyond float16's 65504, raises a SchemeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, check_weights, matrix
from .packing import bad_tail, pack, unpack

BITS = range(2, 9)
ITERATIONS = 1000
_LARGEST = 65504
_PIECE_ELEMENTS = 1 << 18  # elements processed at a time
_MINUS_ZERO = 0x8000  # float16 bits

# Finite float16 bit patterns without minus zero, in the order of their values, and those values.
_PATTERNS = np.concatenate([np.arange(0xFBFF, _MINUS_ZERO, -1), np.arange(0x7C00)]).astype(np.uint16)
_VALUES = _PATTERNS.view(np.float16).astype(np.float64)


@dataclass(frozen=True)
class Cluster(Scheme):
    """Store codes into a codebook of each tensor's own; for tensors of rank 1 and more."""

    name: ClassVar[str] = "cluster"

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise self.refuse(f"{self.name}: bits {self.bits}, {BITS[0]} to {BITS[-1]}")

    def width(self, columns: int) -> int:
        """Return how many bytes the codes of a row take."""
        return -(-columns * self.bits // 8)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype, rank=1)
        codes = PlaneSpec("codes", "u8", (*shape[:-1], self.width(shape[-1])))
        return codes, PlaneSpec("codebook", "f32", (1 << self.bits,))

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        rows = array.reshape(matrix(array.shape))
        count, columns = rows.shape
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        pieces = [slice(start, start + step) for start in range(0, count if columns else 0, step)]
        histogram = np.zeros(1 << 16, np.int64)
        for piece in pieces:
            histogram += np.bincount(half_bits(rows[piece], dtype).reshape(-1), minlength=1 << 16)
        codebook, code_of = self.codebook(histogram)
        codes = np.empty((count, self.width(columns)), np.uint8)
        for piece in pieces:
            codes[piece] = pack(code_of[half_bits(rows[piece], dtype)], self.bits)
        return {"codes": codes.reshape(*array.shape[:-1], self.width(columns)), "codebook": codebook}

    def codebook(self, histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the codebook, f32 [2 ** bits], and the code of every float16 bit pattern, u8 [65536].

        Args:
            histogram: i64 [65536], how often each bit pattern occurs.

        Raises:
            SchemeError: a value that occurs is not finite.
        """
        if histogram[0x7C00:_MINUS_ZERO].any() or histogram[0xFC00:].any():
            raise SchemeError(f"a value is not finite, or beyond float16's 65504, which {self.name} goes through")
        return codebook_of(histogram, 1 << self.bits)

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        count, columns = matrix(shape)
        packed = planes["codes"].reshape(count, self.width(columns))[rows]
        return planes["codebook"][unpack(packed, self.bits, columns)]

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        codebook, used = planes["codebook"], _used(planes["codebook"])
        if not (np.abs(codebook) <= _LARGEST).all():  # NaN fails this too
            yield "codebook", "a value is not finite, or beyond float16's 65504, which every source went through"
        elif (np.diff(codebook[:used]) <= 0).any() or (codebook[used:] != codebook[used - 1]).any():
            yield "codebook", "values are not strictly increasing up to the largest, which may repeat at the end"
        elif (np.signbit(codebook) & (codebook == 0)).any():
            yield "codebook", "a value is minus zero"

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        count, columns = matrix(shape)
        packed = planes["codes"].reshape(count, self.width(columns))
        if bad_tail(packed, self.bits, columns):
            yield "codes", "bits after the last code of a row are not zero"
        used = _used(planes["codebook"])
        if used == 1 << self.bits:
            return
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        largest = (unpack(packed[i : i + step], self.bits, columns).max(initial=0) for i in range(0, count, step))
        if (found := max(largest, default=0)) >= used:
            yield "codes", f"code {found} of a codebook of {used} values"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        count, columns = matrix(shape)
        packed, used = planes["codes"].reshape(count, self.width(columns)), _used(planes["codebook"])
        occurs = np.zeros(1 << self.bits, np.int64)
        step = max(1, _PIECE_ELEMENTS // max(columns, 1))
        for i in range(0, count if columns else 0, step):
            codes = unpack(packed[i : i + step], self.bits, columns)
            occurs += np.bincount(codes.reshape(-1), minlength=len(occurs))
        if not occurs.any():
            if planes["codebook"].any():
                yield "codebook", "a codebook that no code refers to is not all zeros"
            return
        idle = np.flatnonzero(occurs[:used] == 0)
        # k-means may leave a centre between others without values, but never the first or the last.
        if len(idle) and (used < len(occurs) or idle[0] == 0 or idle[-1] == used - 1):
            yield "codebook", f"no code refers to entry {idle[0]}"


def codebook_of(histogram: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute a codebook, f32 [count], and the code of every float16 bit pattern, u8 [65536].

    ``histogram``, i64 or f64 [65536], has the weight of each bit pattern, finite ones alone.
    """
    weights = histogram[_PATTERNS]
    weights[_VALUES == 0] += histogram[_MINUS_ZERO]
    used = np.flatnonzero(weights)
    centres = _lloyd(_VALUES[used], weights[used], count).astype(np.float32)
    codebook = np.full(count, centres[-1] if len(centres) else 0, np.float32)
    codebook[: len(centres)] = centres
    code_of = np.zeros(1 << 16, np.uint8)
    code_of[_PATTERNS] = np.searchsorted(_midpoints(centres.astype(np.float64)), _VALUES)
    code_of[_MINUS_ZERO] = code_of[0]
    return codebook, code_of


def half_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the bits, u16, of ``values`` rounded to float16."""
    if dtype == "f16":
        return np.ascontiguousarray(values).view(np.uint16)
    with np.errstate(over="ignore"):
        return to_float32(values, dtype).astype(np.float16).view(np.uint16)


def _lloyd(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Find at most ``count`` centres, f64, strictly increasing, of distinct ordered values with these weights."""
    if len(values) <= count:
        return values
    occurrences = np.concatenate([[0], np.cumsum(weights)])
    sums = np.concatenate([[0.0], np.cumsum(weights * values)])
    centres = values[_quantiles(_flattened(values, weights), count)]
    before = None
    for _ in range(ITERATIONS):
        edges = np.concatenate([[0], np.searchsorted(values, _midpoints(centres), side="right"), [len(values)]])
        if before is not None and np.array_equal(edges, before):
            break
        before = edges
        low, high = edges[:-1], edges[1:]
        filled = low < high
        low, high = low[filled], high[filled]
        means = (sums[high] - sums[low]) / (occurrences[high] - occurrences[low])
        # Rounding of the sums must not move a mean out of its cluster, or centres could coincide.
        centres[filled] = np.clip(means, values[low], values[high - 1])
    return centres


def _flattened(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the mass at each value, f64, after raising the density to the power 3/8."""
    gaps = np.diff(values)
    widths = (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2
    root = np.sqrt(np.sqrt(weights / widths))
    return root * np.sqrt(root) * widths


def _quantiles(mass: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of ``count`` quantiles, made strictly increasing where several fall on one value."""
    reached, rank = np.cumsum(mass), np.arange(count)
    found = np.searchsorted(reached, (rank + 0.5) * (reached[-1] / count))
    return np.minimum(np.maximum.accumulate(found - rank) + rank, len(mass) - count + rank)


def _midpoints(centres: np.ndarray) -> np.ndarray:
    """Return the midpoints between centres, f64; a value on a midpoint belongs to the lower centre."""
    return (centres[1:] + centres[:-1]) / 2


def _used(codebook: np.ndarray) -> int:
    """Count the entries up to the first that holds the largest value."""
    return int(np.argmax(codebook)) + 1
