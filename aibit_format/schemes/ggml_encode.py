"""Encodes GGML's types whose scales are searched for: what is tried for each, and how its blocks are packed.

q2_k to q6_k, iq4_nl and iq4_xs are always encoded so; q4_0 to q5_1 where an importance of columns is given, and by
rounding as gguf-py does where none is (``ggml``). The searches are so wide that the weighted squared error is below
that of llama.cpp's encoders, and so narrow that they are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import matrix
from .ggml_blocks import ANY_MINIMA, MINIMA, Found, Search
from .ggml_codebook import SIXTEEN
from .ggml_layout import Layout
from .ggml_search import search_blocks, weights_of

_LARGEST = np.float32(1 << 24)  # of values that can be encoded: a scale is at most 65504, a code 127

_PIECE_ELEMENTS = 1 << 16  # elements encoded at a time: so many bytes of codes, and arrays of four times that

# Searches for rows of values, [rows, columns] in the storage of a dtype, with the weights of ``weights_of``.
Find = Callable[[Search, np.ndarray, str, np.ndarray], Found]


def find(search: Search, values: np.ndarray, dtype: str, weights: np.ndarray) -> Found:
    """Search with numpy.

    Raises:
        SchemeError: a value is not finite.
    """
    wide = to_float32(values, dtype).reshape(-1, search.block)
    if not np.isfinite(wide).all():
        raise SchemeError("a value is not finite")
    return search_blocks(search, wide, np.tile(weights, (len(wide) // len(weights), 1)))


def magnitudes(blocks: np.ndarray, dtype: str, size: int) -> np.ndarray:
    """Return weights for blocks [n, block], f32 of their shape: magnitudes, and half the largest of each group.

    Models hang on large weights, which a wide search that takes all alike would clip.
    """
    # Larger ones have no scale in float16, and must not become infinite here.
    magnitude = np.minimum(np.abs(to_float32(blocks, dtype)), _LARGEST).reshape(len(blocks), -1, size)
    top = magnitude.max(axis=2, keepdims=True)
    return weights_of((magnitude + top * np.float32(0.5)).reshape(blocks.shape), blocks.shape[1])


def _packed(codes: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Pack codes, u8 [n, count], in GGML's order: the inverse of ``ggml_layout.Operations.spread``."""
    each = 8 // bits
    runs = codes.reshape(len(codes), -1, each, width)
    packed = runs[:, :, 0].copy()
    for i in range(1, each):
        packed |= runs[:, :, i] << np.uint8(i * bits)
    return packed.reshape(len(codes), codes.shape[1] // each)


def _signed_six(factors: np.ndarray) -> np.ndarray:
    """Return factors from -32 to 31, i8, as u8 from 0 to 63."""
    return (factors + np.int8(32)).view(np.uint8)


def _four(found: Found) -> dict[str, np.ndarray]:
    return {"qs": _packed(found.codes, 4, 16)}


def _five(found: Found) -> dict[str, np.ndarray]:
    return {"qs": _packed(found.codes & 15, 4, 16), "qh": _packed(found.codes >> 4, 1, 1)}


def _q2_k(found: Found) -> dict[str, np.ndarray]:
    factors, offsets = found.factors.view(np.uint8).swapaxes(0, 1)
    return {"scales": factors | offsets << 4, "qs": _packed(found.codes, 2, 32)}


def _q3_k(found: Found) -> dict[str, np.ndarray]:
    six = _signed_six(found.factors[:, 0])
    scales = np.concatenate([_packed(six & 15, 4, 8), _packed(six >> 4, 2, 4)], axis=1)
    return {"hmask": _packed(found.codes >> 2, 1, 32), "qs": _packed(found.codes & 3, 2, 32), "scales": scales}


def _scales_and_minima(found: Found) -> np.ndarray:
    """Pack eight factors and eight offsets of six bits, u8 [n, 12]; see ``ggml._scales_and_minima``."""
    (low, high), (low_offset, high_offset) = (
        (each[:, :4], each[:, 4:]) for each in found.factors.view(np.uint8).swapaxes(0, 1)
    )
    parts = low | high >> 4 << 6, low_offset | high_offset >> 4 << 6, high & 15 | (high_offset & 15) << 4
    return np.concatenate(parts, axis=1)


def _q4_k(found: Found) -> dict[str, np.ndarray]:
    return {"scales": _scales_and_minima(found), "qs": _packed(found.codes, 4, 32)}


def _q5_k(found: Found) -> dict[str, np.ndarray]:
    qs, qh = _packed(found.codes & 15, 4, 32), _packed(found.codes >> 4, 1, 32)
    return {"scales": _scales_and_minima(found), "qs": qs, "qh": qh}


def _q6_k(found: Found) -> dict[str, np.ndarray]:
    ql, qh = _packed(found.codes & 15, 4, 64), _packed(found.codes >> 4, 2, 32)
    return {"ql": ql, "qh": qh, "scales": np.ascontiguousarray(found.factors[:, 0])}


def _iq4_xs(found: Found) -> dict[str, np.ndarray]:
    six = _signed_six(found.factors[:, 0])
    return {"scales_h": _packed(six >> 4, 2, 1), "scales_l": _packed(six & 15, 4, 1), **_four(found)}


@dataclass(frozen=True)
class Encoder:
    """Encode a type of block: what is searched, and which fields besides the scales hold what is found.

    ``by_magnitude``: without an importance, errors are weighted by ``magnitudes``.
    """

    search: Search
    fields: Callable[[Found], dict[str, np.ndarray]]
    by_magnitude: bool = False

    def encode(
        self, layout: Layout, array: np.ndarray, dtype: str, importance: np.ndarray | None, how: Find
    ) -> np.ndarray:
        """Encode a tensor, whose elements are ``dtype``, to blocks, u8 [n, bytes].

        Args:
            layout: of the blocks.
            array, dtype: as ``Scheme.encode`` has them.
            importance: as ``Scheme.encode_weighted`` has it; None: all columns are alike.
            how: searches.

        Raises:
            SchemeError: a value is not finite, or a scale is beyond float16's range.
        """
        if not array.size:
            return np.empty((0, layout.size), np.uint8)
        search = self.search if importance is None else replace(self.search, by_value=False)
        # Without importance it makes no difference where rows end.
        shape = (array.size // layout.block, layout.block) if importance is None else matrix(array.shape)
        rows, weights = np.ascontiguousarray(array).reshape(shape), weights_of(importance, layout.block)
        blocks = np.empty((array.size // layout.block, layout.size), np.uint8)
        done = 0
        for part, some in _pieces(rows, weights, layout.block):
            if importance is None and self.by_magnitude:
                some = magnitudes(part, dtype, search.size)
            packed = self.blocks(layout, how(search, part, dtype, some))
            blocks[done : done + len(packed)] = packed
            done += len(packed)
        return blocks

    def blocks(self, layout: Layout, found: Found) -> np.ndarray:
        """Pack what was found for n blocks, u8 [n, bytes]; raises SchemeError for a scale beyond float16's range."""
        scales = dict(zip(("d", "m" if "m" in layout.fields else "dmin"), np.hsplit(found.scales, 2), strict=True))
        if "m" in scales:  # is added, while dmin is subtracted
            scales["m"] = -scales["m"]
        return layout.join(scales | self.fields(found))


def _pieces(rows: np.ndarray, weights: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut rows into pieces that stay in cache, each with its weights, u8 [periods, block]."""
    step, each = max(1, _PIECE_ELEMENTS // rows.shape[1]), rows.shape[1] // block
    by_row = len(weights) > each  # otherwise all rows have the same
    for start in range(0, len(rows), step):
        stop = start + step
        yield rows[start:stop], weights[start * each : stop * each] if by_row else weights


def _steps(top: int, first: float, last: float, step: float) -> list[float]:
    return np.arange(top + first, top + last + step / 2, step).tolist()


def _scales(
    groups: int, top: int, steps: list[float], factors: tuple[int, int], book: bool = False, by_value: bool = False
) -> Search:
    """Return the search of a type without minima: its codes are from -top to top - 1, or indices of the codebook.

    ``steps`` are those to which the element of largest magnitude is scaled, with either sign.
    """
    starts = tuple((sign * each, 0.0) for sign in (-1, 1) for each in steps)
    values = tuple(int(value) for value in SIXTEEN) if book else None
    codes, size = (0, 15) if book else (-top, top - 1), 16 if groups == 16 else 32
    if groups == 1:
        return Search(1, size, codes, factors, starts, book=values)
    divisors = tuple((float(factors[0] + step), 1.0) for step in (-1, 0, 1))
    return Search(groups, size, codes, factors, starts, divisors, book=values, steps=3, rounds=1, by_value=by_value)


def _minima(groups: int, top: int, steps: list[float], most: int, by_value: bool = False) -> Search:
    """Return the search of a type with minima: its codes are from 0 to top, its factors from 0 to most.

    ``steps`` are those into which the range of values is cut.
    """
    starts = tuple((each, cut) for each in steps for cut in (0, 0.5, 1, 1.5))
    if groups == 1:
        return Search(1, 32, (0, top), (1, 1), starts, minima=ANY_MINIMA)
    divisors = tuple((most + step, most + step) for step in (-2.0, -1.0, 0.0, 1.0, 2.0))
    return Search(
        groups, 256 // groups, (0, top), (0, most), starts, divisors, MINIMA, steps=3, repeats=1, by_value=by_value
    )


ENCODERS: dict[str, Encoder] = {
    "gguf:q4_0": Encoder(_scales(1, 8, _steps(8, -2, 4, 0.25), (1, 1)), _four),
    "gguf:q4_1": Encoder(_minima(1, 15, _steps(15, -3, 3, 0.5), 1), _four),
    "gguf:q5_0": Encoder(_scales(1, 16, _steps(16, -4, 4, 0.25), (1, 1)), _five),
    "gguf:q5_1": Encoder(_minima(1, 31, _steps(31, -4, 3, 0.5), 1), _five),
    "gguf:q2_k": Encoder(_minima(16, 3, _steps(3, -1, 3, 0.5), 15, by_value=True), _q2_k),
    "gguf:q3_k": Encoder(_scales(16, 4, _steps(4, -1, 3, 0.25), (-32, 31), by_value=True), _q3_k),
    "gguf:q4_k": Encoder(_minima(8, 15, _steps(15, -2, 3, 0.5), 63), _q4_k),
    "gguf:q5_k": Encoder(_minima(8, 31, _steps(31, -4, 2, 0.5), 63), _q5_k),
    "gguf:q6_k": Encoder(_scales(16, 32, _steps(32, -12, 4, 0.5), (-128, 127)), _q6_k),
    "gguf:iq4_nl": Encoder(_scales(1, 127, _steps(127, -40, 60, 5), (1, 1), book=True), _four, True),
    "gguf:iq4_xs": Encoder(_scales(8, 127, _steps(127, -40, 60, 6.25), (-32, 31), book=True), _iq4_xs, True),
}

# Types of blocks of 256, and those that llama.cpp takes instead where rows are whole blocks of 32 only.
FALLBACKS: dict[str, str] = {
    **dict.fromkeys(("gguf:q2_k", "gguf:q3_k", "gguf:iq4_xs"), "gguf:iq4_nl"),
    "gguf:q4_k": "gguf:q5_0",
    "gguf:q5_k": "gguf:q5_1",
    "gguf:q6_k": "gguf:q8_0",
}
