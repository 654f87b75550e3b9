"""Implements ``nf4`` and ``fp4``: bitsandbytes' 4-bit weights, with or without double quantization.

The tensor is flattened and cut into blocks of ``block_size`` elements, the last of which may be short. A block has
one scale, its largest magnitude; an element is the nearest of 16 values between -1 and 1, times that scale. Two codes
share a byte, the first in the high nibble. With ``nested=1`` (double quantization) the scales themselves are stored
in 8 bits: their mean is subtracted, and each block of 256 is quantized to a codebook of 256 values with a float32
scale.

The arithmetic is that of ``bitsandbytes.functional.quantize_4bit`` on CPU (0.50), bit for bit, except for the mean:
torch's depends on the number of threads, so here it is the sum in float64 divided by the count and rounded once.
See Dettmers et al., QLoRA, 2023 (nf4, double quantization) and 8-bit Optimizers via Block-wise Quantization, 2022
(the codebook of the scales).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from .. import native
from ..dtypes import to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, bad_scales, check_importance, check_weights, matrix
from .packing import pack_nibbles, unpack_nibbles
from .scale_grids import book as book_grid
from .scale_search import NUMPY, Grid, Pair, Steps
from .searched import Numbers, Searched, groups_of

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256  # scales that share a scale
LEAST = np.float32(1e-38)  # stands in for a zero scale in divisions, as in bitsandbytes
_PIECE_ELEMENTS = 1 << 20  # elements encoded at a time; a multiple of every block size

# nf4: quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (QLoRA, appendix E).
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
# fp4: a sign, two bits of exponent and one of mantissa, divided by the largest; code 8 is zero again.
FP4 = np.array([
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
    0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
], np.float32)  # fmt: skip


@dataclass(frozen=True)
class Codebook:
    """Hold the 16 values of the codes, and the tables by which an encoder finds a code.

    ``bounds`` are the midpoints, in float32, between the sorted values. The rank of a number is how many of them lie
    strictly below it, and ``order[rank]`` is its code.
    """

    values: np.ndarray  # f32 [16]
    order: np.ndarray  # u8 [16]
    bounds: np.ndarray  # f32 [15]

    @property
    def permuted(self) -> bool:
        """Tell whether codes differ from ranks."""
        return bool((self.order != np.arange(16)).any())

    @property
    def pairs(self) -> np.ndarray:
        """Map a byte of two ranks to the byte of their codes, u8 [256]."""
        return (self.order[:, None] << 4 | self.order).reshape(-1)

    @cached_property
    def both(self) -> np.ndarray:
        """Map a byte of two codes to their float32 values, side by side in memory, u64 [256]."""
        return np.stack([np.repeat(self.values, 16), np.tile(self.values, 16)], 1).reshape(-1).view(np.uint64)

    @property
    def zero(self) -> int:
        """Return the code of 0.0, which pads the last byte of an odd number of elements."""
        return int(self.order[np.searchsorted(self.bounds, np.float32(0))])


def _codebook(values: np.ndarray, order: np.ndarray) -> Codebook:
    ranked = values[order]
    return Codebook(values, order.astype(np.uint8), (ranked[1:] + ranked[:-1]) / np.float32(2))


CODEBOOKS = {
    "nf4": _codebook(NF4, np.arange(16)),
    # As in bitsandbytes, code 0 stands for small values below zero and for zero, and code 8 for small ones above it.
    "fp4": _codebook(FP4, np.array([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3])),
}


def _ranks(book: Codebook, scaled: np.ndarray) -> np.ndarray:
    """Count the bounds below finite numbers, u8: fifteen comparisons are faster than a search for each."""
    ranks = np.zeros(scaled.shape, np.uint8)
    for bound in book.bounds:
        ranks += scaled > bound
    return ranks


@cache
def dynamic_map() -> np.ndarray:
    """Return the codebook of nested scales, f32 [256]: bitsandbytes' signed dynamic map of 8 bits.

    It holds, for each power of ten from 1e-6 to 1, the midpoints of 1, 2, 4 ... 64 equal parts of its upper nine
    tenths, positive and negative; and 0 and 1.
    """
    values = [0.0, 1.0]
    for power in range(7):
        parts = 1 << power
        # As torch.linspace: a float32 step, rounded once, counted from the start in the first half, then from the end.
        step = float((np.float32(1) - np.float32(0.1)) / np.float32(parts))
        i = np.arange(parts + 1)
        edges = np.where(i < (parts + 1) // 2, float(np.float32(0.1)) + step * i, 1 - step * (parts - i))
        edges = edges.astype(np.float32)
        middles = np.float32(10.0 ** (power - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*middles.tolist(), *(-middles).tolist()]
    return np.sort(np.array(values, np.float32))


@cache
def _nested_table() -> np.ndarray:
    """Return the code nearest to the middle of each bin that bitsandbytes' CPU library sorts into, u8 [65536]."""
    book, middle = dynamic_map(), np.arange(65536) / 32767.5 - 1
    right = np.minimum(np.searchsorted(book, middle), 255)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(middle - book[left]) <= np.abs(book[right] - middle), left, right).astype(np.uint8)


@dataclass(frozen=True)
class FourBit(Searched):
    """Store 4-bit codes, ``nf4`` or ``fp4``, with a scale per block; for tensors of rank 1 and more."""

    name: str  # type: ignore[misc]  # one class serves both, so here the name belongs to the instance
    promised = True  # bitsandbytes' own bits
    block_size: int = 64
    nested: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size not in BLOCK_SIZES:
            raise self.refuse(f"{self.name}: block size {self.block_size}, one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.nested not in (0, 1):
            raise self.refuse(f"{self.name}: nested {self.nested}, 0 or 1")

    def blocks(self, shape: tuple[int, ...]) -> int:
        """Return the number of blocks, a short one at the end included."""
        return -(-math.prod(shape) // self.block_size)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype, rank=1)
        codes = PlaneSpec("codes", "u8", (-(-math.prod(shape) // 2),))
        blocks = self.blocks(shape)
        if not self.nested:
            return codes, PlaneSpec("absmax", "f32", (blocks,))
        return (
            codes,
            PlaneSpec("absmax", "u8", (blocks,)),
            PlaneSpec("nested_absmax", "f32", (-(-blocks // NESTED_BLOCK),)),
            PlaneSpec("nested_offset", "f32", (1,)),
        )

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps = NUMPY
    ) -> dict[str, np.ndarray]:
        if importance is not None:
            check_importance(importance, array.shape)
        if self.is_searched(importance):
            return self._searched(array, dtype, importance, steps)
        flat = array.reshape(-1)
        codes = np.empty(-(-flat.size // 2), np.uint8)
        absmax = np.empty(self.blocks(array.shape), np.float32)
        for start in range(0, flat.size, _PIECE_ELEMENTS):
            packed, scales = self.encode_flat(flat[start : start + _PIECE_ELEMENTS], dtype)
            codes[start // 2 : start // 2 + packed.size] = packed
            absmax[start // self.block_size : start // self.block_size + scales.size] = scales
        return {"codes": codes, **self.scales(absmax)}

    def _searched(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: Steps
    ) -> dict[str, np.ndarray]:
        """Encode with scales that are searched for; a short block at the end has the largest magnitude as its scale."""
        flat, size, book = np.ascontiguousarray(array).reshape(-1), self.block_size, CODEBOOKS[self.name]
        whole = flat.size - flat.size % size
        codes = np.empty(-(-flat.size // 2), np.uint8)
        absmax = np.empty(self.blocks(array.shape), np.float32)
        columns = matrix(array.shape)[1]
        for start in range(0, whole, _PIECE_ELEMENTS):
            part = flat[start : min(start + _PIECE_ELEMENTS, whole)]
            blocks = slice(start // size, (start + len(part)) // size)
            weights = None
            if importance is not None:
                at = np.arange(start, start + len(part))
                weights = importance.reshape(-1)[at % importance.size if importance.ndim == 2 else at % columns]
                weights = weights.reshape(1, -1)
            _, plain = self._scaled(to_float32(part, dtype))
            found = self.improved(groups_of(part.reshape(1, -1), dtype, size, weights), {"absmax": plain}, steps)
            absmax[blocks] = found["absmax"]
            values = to_float32(part, dtype).reshape(-1, size)
            scaled = values * (np.float32(1) / np.maximum(absmax[blocks], LEAST))[:, None]
            ranks = _ranks(book, scaled.reshape(-1))
            codes[start // 2 : (start + len(part)) // 2] = pack_nibbles(book.order[ranks])
        if whole < flat.size:
            codes[whole // 2 :], absmax[-1:] = self.encode_flat(flat[whole:], dtype)
        return {"codes": codes, **self.scales(absmax)}

    @property
    def grid_of_codes(self) -> Grid:
        book = CODEBOOKS[self.name]
        return book_grid(tuple(book.values[book.order].tolist()))

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        return [{"absmax": np.where(plain["absmax"] == 0, np.float32(0), np.maximum(scale, LEAST))}]

    def real(self, numbers: Numbers) -> Pair:
        return numbers["absmax"], np.zeros(len(numbers["absmax"]), np.float32)

    def encode_flat(self, flat: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Encode flat elements that begin at a block; returns packed codes and float32 scales."""
        book = CODEBOOKS[self.name]
        scaled, scales = self._scaled(to_float32(flat, dtype))
        codes = book.order[_ranks(book, scaled)]
        return pack_nibbles(np.append(codes, np.full(flat.size % 2, book.zero, np.uint8))), scales

    def _scaled(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Divide float32 values by their blocks' scales; returns the quotients and the scales."""
        whole = values.size - values.size % self.block_size
        blocks, rest = values[:whole].reshape(-1, self.block_size), values[whole:]
        absmax = np.abs(blocks).max(axis=1, initial=0)
        if not (np.isfinite(absmax).all() and np.isfinite(rest).all()):
            raise SchemeError("a value is not finite")
        scaled = np.clip(blocks * (np.float32(1) / np.maximum(absmax, LEAST))[:, None], -1, 1).reshape(-1)
        if rest.size:  # here bitsandbytes divides; above it multiplies by the inverse
            last = np.maximum(np.abs(rest).max(), LEAST)
            scaled, absmax = np.append(scaled, rest / last), np.append(absmax, last)
        return scaled, absmax

    def scales(self, absmax: np.ndarray) -> dict[str, np.ndarray]:
        """Store the scales, f32 [blocks], in their planes.

        Raises:
            SchemeError: a scale is not finite, because a value was not.
        """
        if not np.isfinite(absmax).all():
            raise SchemeError("a value is not finite")
        if not self.nested:
            return {"absmax": absmax}
        offset = np.float32(math.fsum(absmax.tolist()) / max(absmax.size, 1))
        rest = np.zeros(-(-absmax.size // NESTED_BLOCK) * NESTED_BLOCK, np.float32)
        rest[: absmax.size] = absmax - offset
        groups = rest.reshape(-1, NESTED_BLOCK)
        largest = np.abs(groups).max(axis=1, initial=0)
        # The inverse of a scale below 2^-128 is infinite; then zeros get code 0, as in a group of zeros.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scaled = np.nan_to_num(np.clip(groups * (np.float32(1) / largest)[:, None], -1, 1), nan=-1)
        bins = ((scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)).astype(np.int32)
        codes = _nested_table()[np.minimum(bins, 65535)]
        return {
            "absmax": codes.reshape(-1)[: absmax.size],
            "nested_absmax": largest,
            "nested_offset": np.array([offset]),
        }

    def absmax(self, planes: Planes, blocks: slice | np.ndarray) -> np.ndarray:
        """Return the scales of some blocks, f32, nested or not."""
        if not self.nested:
            return planes["absmax"][blocks]
        at = np.arange(len(planes["absmax"]))[blocks] if isinstance(blocks, slice) else blocks
        scales = dynamic_map()[planes["absmax"][blocks]]
        return scales * planes["nested_absmax"][at // NESTED_BLOCK] + planes["nested_offset"][0]

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        count, columns = matrix(shape)
        if columns % self.block_size == 0:  # rows begin and end at bytes and blocks
            codes, scales = self.whole_rows(planes, (count, columns), rows)
            if not native.available:
                return self.decode_blocks(codes, scales)
            values = np.empty((len(codes), columns), np.float32)
            self.decode_into(codes, scales, values)
            return values
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(count)
            stop = max(start, stop)
            return self._stretch(planes, start * columns, stop * columns).reshape(stop - start, columns)
        parts = [self._stretch(planes, row * columns, (row + 1) * columns) for row in rows.tolist()]
        return np.concatenate(parts or [np.zeros(0, np.float32)]).reshape(len(parts), columns)

    def whole_rows(self, planes: Planes, shape: tuple[int, int], rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return codes u8 [rows, columns / 2] and scales f32 [rows, blocks per row] of rows made of whole blocks."""
        count, columns = shape
        each = columns // self.block_size
        scales = self.absmax(planes, np.arange(count * each).reshape(count, each)[rows])
        return planes["codes"].reshape(count, columns // 2)[rows], scales

    def decode_blocks(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Decode rows made of whole blocks to f32 [rows, columns]."""
        # A byte is always a valid index, so nothing is clipped: this mode only skips numpy's check.
        values = np.take(CODEBOOKS[self.name].both, codes, mode="clip").view(np.float32)
        scaled = values.reshape(*scales.shape, self.block_size)
        scaled *= scales[..., None]
        return values

    def decode_into(self, codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
        """Decode like ``decode_blocks`` but with compiled code, into ``out``; needs ``native.available``."""
        book = CODEBOOKS[self.name].values
        native.four_bit_values(np.ascontiguousarray(codes), "f32", book, scales, self.block_size, out)

    def _stretch(self, planes: Planes, start: int, stop: int) -> np.ndarray:
        """Decode the flat elements from ``start`` to ``stop``, which may begin and end inside a byte or block."""
        byte, block = start // 2, start // self.block_size
        codes = unpack_nibbles(planes["codes"][byte : -(-stop // 2)], 2 * (-(-stop // 2) - byte))
        values = CODEBOOKS[self.name].values[codes[start - 2 * byte : stop - 2 * byte]]
        scales = self.absmax(planes, slice(block, -(-stop // self.block_size)))
        each = np.repeat(scales, self.block_size)[start - block * self.block_size :]
        values *= each[: values.size]
        return values

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        # All nested scales share one offset.
        return not self.nested and matrix(shape)[1] % self.block_size == 0

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        columns = matrix(shape)[1]
        return self.block_size // math.gcd(self.block_size, columns)

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from bad_scales(planes, "nested_absmax" if self.nested else "absmax")
        if self.nested and not np.isfinite(planes["nested_offset"]).all():
            yield "nested_offset", "the offset of the scales is not finite"

    def other_forms(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        elements, zero = math.prod(shape), CODEBOOKS[self.name].zero
        if elements % 2 and planes["codes"][-1] & 15 != zero:
            yield "codes", f"the nibble after the last code is not {zero}"
        if not self.nested:
            yield from self._blocks_of_zeros(planes["codes"], planes["absmax"], elements % 2)
        elif not elements and planes["nested_offset"].any():
            yield "nested_offset", "the offset of no scales is not 0"

    def _blocks_of_zeros(self, codes: np.ndarray, absmax: np.ndarray, spare: int) -> Iterator[tuple[str, str]]:
        """Yield what is otherwise in blocks of zeros; with ``spare``, the last nibble is no code."""
        book, each = CODEBOOKS[self.name], self.block_size // 2
        first, second = np.repeat(book.values, 16), np.tile(book.values, 16)
        nonzero = (first != 0) | (second != 0)  # by byte
        idle = other = False
        for start in range(0, len(codes), _PIECE_ELEMENTS // 2):
            piece = codes[start : start + _PIECE_ELEMENTS // 2]
            if spare and start + len(piece) == len(codes):
                piece = np.append(piece[:-1], piece[-1] & 0xF0 | book.zero)
            starts = np.arange(0, len(piece), each)
            scales = absmax[start // each :][: len(starts)]
            used = np.logical_or.reduceat(nonzero[piece], starts)
            idle |= bool((scales[~used] > LEAST).any())  # a scale below it may leave no code but that of 0
            odd = np.logical_or.reduceat(np.not_equal(piece, book.zero * 17), starts)
            other |= bool(odd[scales == 0].any())
        if idle:
            yield "absmax", "a block without a code but that of 0 has a scale"
        if other:
            yield "codes", f"a code under a scale of 0 is not {book.zero}"
