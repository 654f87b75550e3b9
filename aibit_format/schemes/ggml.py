"""Implements ``gguf:q4_0`` to ``gguf:q6_k``: llama.cpp's quantized weights, in the blocks that GGUF files hold.

A row is cut into blocks of 32 or, for the k-quants, 256 elements, and every block carries its own scales. The one
plane, ``blocks``, holds the bytes of the blocks unchanged: a tensor goes from one GGUF file to another through this
format without a bit changing. Sizes below are sums that show a block's fields in their order.

Decoded values are those of ``gguf.quants.dequantize`` (gguf-py 0.19), bit for bit, and encoded blocks those of its
``quantize``, which supports only the formats of 32 elements. k-quants can be kept here, but only llama.cpp makes them.
The layouts are those of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme, check_weights, matrix

Fields = Mapping[str, np.ndarray]  # fields of n blocks: u8 [n, bytes], the float16 scales as f32 [n, 1]

_HALVES = frozenset({"d", "dmin", "m"})  # fields that are one float16
_PIECE_ELEMENTS = 1 << 17  # elements decoded or encoded at a time: their float32 copies stay in cache


@dataclass(frozen=True)
class Layout:
    """Describe a type of block: its elements, its fields with their bytes in order, and how they are decoded."""

    block: int
    fields: Mapping[str, int]
    decode: Callable[[Fields], np.ndarray]  # to f32 [n, block]
    encode: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None  # of f32 [n, block]; scales as f32 [n, 1]

    @property
    def size(self) -> int:
        """Return the bytes of a block."""
        return sum(self.fields.values())

    def split(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        """Split blocks, u8 [n, size], into their fields."""
        parts = np.split(blocks, np.cumsum(list(self.fields.values()))[:-1], axis=1)
        return {
            name: part.copy().view("<f2").astype(np.float32) if name in _HALVES else part
            for name, part in zip(self.fields, parts, strict=True)
        }

    def join(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """Join fields, as ``encode`` returns them, to blocks, u8 [n, size].

        Raises:
            SchemeError: a scale is beyond float16's range.
        """
        parts = []
        for name in self.fields:
            part = fields[name]
            if name in _HALVES:
                with np.errstate(over="ignore"):
                    part = part.astype("<f2")
                if not np.isfinite(part).all():
                    raise SchemeError("values are too large: a block's scale is beyond float16's 65504")
            parts.append(part.view(np.uint8))
        return np.concatenate(parts, axis=1)


def spread(data: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Unpack codes of ``bits`` bits from u8 [n, bytes] to u8 [n, 8 / bits * bytes], in GGML's order.

    Each run of ``width`` bytes holds first the codes in the lowest bits of each byte, then those in the next higher
    bits, and so on.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = data.reshape(len(data), data.shape[1] // width, 1, width) >> shifts
    return (groups & np.uint8((1 << bits) - 1)).reshape(len(data), data.shape[1] * 8 // bits)


def _f32(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32)


def _grouped(codes: np.ndarray, groups: int) -> np.ndarray:
    """Convert codes to f32 [n, groups, elements per group]."""
    return _f32(codes).reshape(len(codes), groups, -1)


# Blocks of 32: a scale and, in the _1 formats, an offset.


def _five_bits(f: Fields) -> np.ndarray:
    """Unpack 5-bit codes, u8 [n, 32]: four bits of each are in ``qs``, the fifth of code i is bit i of ``qh``."""
    return spread(f["qs"], 4, 16) | (np.unpackbits(f["qh"], axis=1, bitorder="little") << 4)


def _decode_q4_0(f: Fields) -> np.ndarray:
    return f["d"] * (_f32(spread(f["qs"], 4, 16)) - np.float32(8))


def _decode_q4_1(f: Fields) -> np.ndarray:
    return f["d"] * _f32(spread(f["qs"], 4, 16)) + f["m"]


def _decode_q5_0(f: Fields) -> np.ndarray:
    return f["d"] * (_f32(_five_bits(f)) - np.float32(16))


def _decode_q5_1(f: Fields) -> np.ndarray:
    return f["d"] * _f32(_five_bits(f)) + f["m"]


def _decode_q8_0(f: Fields) -> np.ndarray:
    return _f32(f["qs"].view(np.int8)) * f["d"]


def _inverse(d: np.ndarray) -> np.ndarray:
    """Return 1 / d, or 0 where that is not finite: such a scale is 0 in float16, whatever the codes are."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _pack(codes: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """Pack codes u8 [n, 32] into ``qs`` and, if they have five bits, ``qh``."""
    fields = {"qs": (codes[:, :16] & 15) | (codes[:, 16:] << 4)}
    return fields if bits == 4 else fields | {"qh": np.packbits(codes >> 4, axis=1, bitorder="little")}


def _encode_scale(bits: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Make the encoder of q4_0 or q5_0: the value of largest magnitude gets the code of largest magnitude, 0."""
    half = 1 << (bits - 1)

    def encode(x: np.ndarray) -> dict[str, np.ndarray]:
        d = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / np.float32(-half)
        codes = np.trunc(x * _inverse(d) + np.float32(half + 0.5)).astype(np.uint8)
        return {"d": d, **_pack(codes.clip(0, 2 * half - 1), bits)}

    return encode


def _encode_offset(bits: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Make the encoder of q4_1 or q5_1: equal steps from the least value to the greatest."""
    top = (1 << bits) - 1

    def encode(x: np.ndarray) -> dict[str, np.ndarray]:
        least = x.min(axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            d = (x.max(axis=1, keepdims=True) - least) / np.float32(top)
            codes = np.trunc((x - least) * _inverse(d) + np.float32(0.5)) if np.isfinite(d).all() else np.zeros_like(x)
        return {"d": d, "m": least, **_pack(codes.astype(np.uint8).clip(0, top), bits)}

    return encode


def _encode_q8_0(x: np.ndarray) -> dict[str, np.ndarray]:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += magnitude - whole >= np.float32(0.5)  # halves away from zero, as C's roundf
    return {"d": d, "qs": np.copysign(whole, scaled).astype(np.int8)}


# k-quants: 16 or 8 groups, each with its own scale of a few bits, times the block's.


def _decode_q2_k(f: Fields) -> np.ndarray:
    scale, least = f["d"] * _f32(f["scales"] & 15), f["dmin"] * _f32(f["scales"] >> 4)
    return scale[:, :, None] * _grouped(spread(f["qs"], 2, 32), 16) - least[:, :, None]


def _decode_q3_k(f: Fields) -> np.ndarray:
    six = spread(f["scales"][:, :8], 4, 8) | (spread(f["scales"][:, 8:], 2, 4) << 4)
    scale = f["d"] * (_f32(six) - np.float32(32))
    # The mask holds the third bit of code + 4: where it is not set, the code is negative.
    codes = _f32(spread(f["qs"], 2, 32) | (spread(f["hmask"], 1, 32) << 2)) - np.float32(4)
    return scale[:, :, None] * codes.reshape(len(codes), 16, 16)


def _scales_and_minima(f: Fields) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the 6-bit scales and minima of q4_k and q5_k, times the block's, each f32 [n, 8, 1].

    The lower six bits of bytes 0 to 3 are the first four scales, those of bytes 4 to 7 the first four minima. The last
    four of each have their lower four bits in the nibbles of bytes 8 to 11, and their upper two bits in the upper two
    bits of bytes 0 to 7.
    """
    a, b, c = f["scales"][:, :4], f["scales"][:, 4:8], f["scales"][:, 8:]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return (f["d"] * _f32(scales))[:, :, None], (f["dmin"] * _f32(minima))[:, :, None]


def _decode_q4_k(f: Fields) -> np.ndarray:
    scale, least = _scales_and_minima(f)
    return scale * _grouped(spread(f["qs"], 4, 32), 8) - least


def _decode_q5_k(f: Fields) -> np.ndarray:
    scale, least = _scales_and_minima(f)
    return scale * _grouped(spread(f["qs"], 4, 32) | (spread(f["qh"], 1, 32) << 4), 8) - least


def _decode_q6_k(f: Fields) -> np.ndarray:
    scale = f["d"] * _f32(f["scales"].view(np.int8))
    codes = _f32(spread(f["ql"], 4, 64) | (spread(f["qh"], 2, 32) << 4)) - np.float32(32)
    return scale[:, :, None] * codes.reshape(len(codes), 16, 16)


LAYOUTS: dict[str, Layout] = {
    "gguf:q4_0": Layout(32, {"d": 2, "qs": 16}, _decode_q4_0, _encode_scale(4)),
    "gguf:q4_1": Layout(32, {"d": 2, "m": 2, "qs": 16}, _decode_q4_1, _encode_offset(4)),
    "gguf:q5_0": Layout(32, {"d": 2, "qh": 4, "qs": 16}, _decode_q5_0, _encode_scale(5)),
    "gguf:q5_1": Layout(32, {"d": 2, "m": 2, "qh": 4, "qs": 16}, _decode_q5_1, _encode_offset(5)),
    "gguf:q8_0": Layout(32, {"d": 2, "qs": 32}, _decode_q8_0, _encode_q8_0),
    "gguf:q2_k": Layout(256, {"scales": 16, "qs": 64, "d": 2, "dmin": 2}, _decode_q2_k),
    "gguf:q3_k": Layout(256, {"hmask": 32, "qs": 64, "scales": 8 + 4, "d": 2}, _decode_q3_k),
    "gguf:q4_k": Layout(256, {"d": 2, "dmin": 2, "scales": 8 + 4, "qs": 128}, _decode_q4_k),
    "gguf:q5_k": Layout(256, {"d": 2, "dmin": 2, "scales": 8 + 4, "qh": 32, "qs": 128}, _decode_q5_k),
    "gguf:q6_k": Layout(256, {"ql": 128, "qh": 64, "scales": 16, "d": 2}, _decode_q6_k),
}


@dataclass(frozen=True)
class GGML(Scheme):
    """Store one plane, ``blocks`` u8, in the tensor's shape with the bytes of a row's blocks as last dimension."""

    name: str  # type: ignore[misc]  # one class serves all of them, so here the name belongs to the instance

    @property
    def layout(self) -> Layout:
        """Return the layout of this scheme's blocks."""
        return LAYOUTS[self.name]

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        check_weights(self.name, shape, dtype, rank=1)
        block = self.layout.block
        if shape[-1] % block:
            raise SchemeError(f"{self.name} needs rows of whole blocks of {block} elements, found {shape[-1]}")
        return (PlaneSpec("blocks", "u8", (*shape[:-1], shape[-1] // block * self.layout.size)),)

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        layout = self.layout
        if layout.encode is None:
            raise SchemeError(f"{self.name} is kept as llama.cpp made it: only llama.cpp encodes it (llama-quantize)")
        (plane,) = self.planes(array.shape, dtype)
        source = array.reshape(array.size // layout.block, layout.block)
        blocks = np.empty((len(source), layout.size), np.uint8)
        step = _PIECE_ELEMENTS // layout.block
        for start in range(0, len(source), step):
            values = to_float32(source[start : start + step], dtype)
            if not np.isfinite(values).all():
                raise SchemeError("a value is not finite")
            blocks[start : start + step] = layout.join(layout.encode(values))
        return {"blocks": blocks.reshape(plane.shape)}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        layout = self.layout
        count, columns = matrix(shape)
        chosen = planes["blocks"].reshape(count, columns // layout.block * layout.size)[rows]
        blocks = chosen.reshape(chosen.size // layout.size, layout.size)
        values = np.empty((len(blocks), layout.block), np.float32)
        step = _PIECE_ELEMENTS // layout.block
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step]
            values[start : start + step] = layout.decode(layout.split(piece)).reshape(len(piece), layout.block)
        return values.reshape(len(chosen), columns)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return True

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        # Scales lie among the codes: checking them reads the whole tensor.
        blocks = planes["blocks"].reshape(-1, self.layout.size)
        starts = np.cumsum([0, *self.layout.fields.values()])
        for name, start in zip(self.layout.fields, starts.tolist(), strict=False):
            # A float16 whose exponent bits, which are in its second byte, are all set is infinite or NaN.
            if name in _HALVES and (blocks[:, start + 1] & 0x7C == 0x7C).any():
                yield "blocks", f"a scale ({name}) is not finite"
