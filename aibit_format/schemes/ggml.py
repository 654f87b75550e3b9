"""Implements ``gguf:q4_0`` and the other ``gguf:`` schemes: llama.cpp's quantized weights, in the blocks of GGUF files.

A row is cut into blocks of 32 to 256 elements, and every block carries its own scales. The one plane, ``blocks``, holds
the bytes of the blocks unchanged: a tensor goes from one GGUF file to another through this format without a bit
changing. Sizes below are sums that show a block's fields in their order.

Decoded values are those of ``gguf.quants.dequantize`` (gguf-py 0.19), bit for bit; of llama.cpp's ``to_float`` where
gguf-py decodes nothing (q1_0, q2_0). Encoded blocks are those of gguf-py's ``quantize`` for q4_0 to q8_0. Scales of
q2_k to q6_k and of iq4 are searched for, and those of q4_0 to q5_1 where an importance is given (``ggml_encode``). All
others can be kept here, but only llama.cpp makes them. q8_1 and q8_k are missing: llama.cpp quantizes activations to
them while it runs, and no file holds weights in them. The layouts are those of
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..dtypes import to_float32
from ..errors import SchemeError
from . import ggml_numpy
from .base import Planes, PlaneSpec, Rows, Scheme, check_importance, check_weights, matrix
from .ggml_codebook import CODEBOOK_LAYOUTS
from .ggml_encode import ENCODERS, FALLBACKS, Find, find
from .ggml_layout import Array, Fields, Layout, Operations, grouped

_PIECE_ELEMENTS = 1 << 17  # elements decoded or encoded at a time: their float32 copies stay in cache


# Blocks of 32: a scale and, in the _1 formats, an offset.


def _five_bits(f: Fields, ops: Operations) -> Array:
    """Unpack 5-bit codes, u8 [n, 32]: four bits of each are in ``qs``, the fifth of code i is bit i of ``qh``."""
    return ops.spread(f["qs"], 4, 16) | (ops.spread(f["qh"], 1, 1) << 4)


def _decode_q4_0(f: Fields, ops: Operations) -> Array:
    return f["d"] * (ops.to_f32(ops.spread(f["qs"], 4, 16)) - 8)


def _decode_q4_1(f: Fields, ops: Operations) -> Array:
    return f["d"] * ops.to_f32(ops.spread(f["qs"], 4, 16)) + f["m"]


def _decode_q5_0(f: Fields, ops: Operations) -> Array:
    return f["d"] * (ops.to_f32(_five_bits(f, ops)) - 16)


def _decode_q5_1(f: Fields, ops: Operations) -> Array:
    return f["d"] * ops.to_f32(_five_bits(f, ops)) + f["m"]


def _decode_q8_0(f: Fields, ops: Operations) -> Array:
    return ops.to_f32(ops.signed(f["qs"])) * f["d"]


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


def _decode_q2_k(f: Fields, ops: Operations) -> Array:
    scale, least = f["d"] * ops.to_f32(f["scales"] & 15), f["dmin"] * ops.to_f32(f["scales"] >> 4)
    return scale[:, :, None] * grouped(ops.to_f32(ops.spread(f["qs"], 2, 32)), 16) - least[:, :, None]


def _decode_q3_k(f: Fields, ops: Operations) -> Array:
    six = ops.spread(f["scales"][:, :8], 4, 8) | (ops.spread(f["scales"][:, 8:], 2, 4) << 4)
    scale = f["d"] * (ops.to_f32(six) - 32)
    # The mask holds the third bit of code + 4: where it is not set, the code is negative.
    codes = ops.to_f32(ops.spread(f["qs"], 2, 32) | (ops.spread(f["hmask"], 1, 32) << 2)) - 4
    return scale[:, :, None] * grouped(codes, 16)


def _scales_and_minima(f: Fields, ops: Operations) -> tuple[Array, Array]:
    """Unpack the 6-bit scales and minima of q4_k and q5_k, times the block's, each f32 [n, 8, 1].

    The lower six bits of bytes 0 to 3 are the first four scales, those of bytes 4 to 7 the first four minima. The last
    four of each have their lower four bits in the nibbles of bytes 8 to 11, and their upper two bits in the upper two
    bits of bytes 0 to 7.
    """
    a, b, c = f["scales"][:, :4], f["scales"][:, 4:8], f["scales"][:, 8:]
    scales = ops.join([a & 63, (c & 15) | (a >> 6 << 4)])
    minima = ops.join([b & 63, (c >> 4) | (b >> 6 << 4)])
    return (f["d"] * ops.to_f32(scales))[:, :, None], (f["dmin"] * ops.to_f32(minima))[:, :, None]


def _decode_q4_k(f: Fields, ops: Operations) -> Array:
    scale, least = _scales_and_minima(f, ops)
    return scale * grouped(ops.to_f32(ops.spread(f["qs"], 4, 32)), 8) - least


def _decode_q5_k(f: Fields, ops: Operations) -> Array:
    scale, least = _scales_and_minima(f, ops)
    codes = ops.spread(f["qs"], 4, 32) | (ops.spread(f["qh"], 1, 32) << 4)
    return scale * grouped(ops.to_f32(codes), 8) - least


def _decode_q6_k(f: Fields, ops: Operations) -> Array:
    scale = f["d"] * ops.to_f32(ops.signed(f["scales"]))
    codes = ops.to_f32(ops.spread(f["ql"], 4, 64) | (ops.spread(f["qh"], 2, 32) << 4)) - 32
    return scale[:, :, None] * grouped(codes, 16)


# Types without groups: one, two or four bits, ternary digits, and 4-bit floats of E2M1 in twice their value.

_E2M1_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # a zero has no sign
_E8M0_HALVED = np.ldexp(np.float32(1), np.arange(256) - 128)  # f32; the least are subnormal


def _decode_q1_0(f: Fields, ops: Operations) -> Array:
    return f["d"] * (ops.to_f32(ops.spread(f["qs"], 1, 1)) * 2 - 1)


def _decode_q2_0(f: Fields, ops: Operations) -> Array:
    return f["d"] * (ops.to_f32(ops.spread(f["qs"], 2, 1)) - 1)


def _decode_tq1_0(f: Fields, ops: Operations) -> Array:
    """Decode ternary digits: of each run of bytes first all first digits, then all second ones, and so on.

    A byte is ceil(v / 243 * 256) for the number v of five digits. 3 times the byte, shifted right by 8 bits, is
    the first of them, and the lower 8 bits of that product are the byte of the digits that follow.
    """
    runs = (f["qs"][:, :32], 5), (f["qs"][:, 32:], 5), (f["qh"], 4)
    digits = [ops.wide(run * 3**i) * 3 >> 8 for run, count in runs for i in range(count)]  # u8 * 3^i wraps around
    return f["d"] * (ops.to_f32(ops.join(digits)) - 1)


def _decode_tq2_0(f: Fields, ops: Operations) -> Array:
    return f["d"] * (ops.to_f32(ops.spread(f["qs"], 2, 32)) - 1)


def _decode_mxfp4(f: Fields, ops: Operations) -> Array:
    with np.errstate(over="ignore"):
        return ops.take(_E8M0_HALVED, f["e"]) * ops.take(_E2M1_TWICE, ops.spread(f["qs"], 4, 16))


@cache
def _unsigned_e4m3_halved() -> np.ndarray:
    """Return half of what the 256 bytes of nvfp4's ``d`` stand for, f32: the highest bit does not count; 0x7F is 0."""
    values = to_float32(np.arange(256, dtype=np.uint8) & 0x7F, "f8_e4m3")
    values[[0x7F, 0xFF]] = 0, 480
    return values * np.float32(0.5)


def _decode_nvfp4(f: Fields, ops: Operations) -> Array:
    scale = ops.take(_unsigned_e4m3_halved(), f["d"])
    return scale[:, :, None] * grouped(ops.take(_E2M1_TWICE, ops.spread(f["qs"], 4, 8)), 4)


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
    "gguf:q1_0": Layout(128, {"d": 2, "qs": 16}, _decode_q1_0),
    "gguf:q2_0": Layout(64, {"d": 2, "qs": 16}, _decode_q2_0),
    "gguf:tq1_0": Layout(256, {"qs": 32 + 16, "qh": 4, "d": 2}, _decode_tq1_0),
    "gguf:tq2_0": Layout(256, {"qs": 64, "d": 2}, _decode_tq2_0),
    # 2^-128 times 12 would be infinite from an exponent of 253 on, and 255 is E8M0's NaN.
    "gguf:mxfp4": Layout(32, {"e": 1, "qs": 16}, _decode_mxfp4, other_scales={"e": lambda e: e > 252}),
    "gguf:nvfp4": Layout(64, {"d": 4, "qs": 32}, _decode_nvfp4, other_scales={"d": lambda d: d & 0x7F == 0x7F}),
    **CODEBOOK_LAYOUTS,
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
            return self.encode_weighted(array, dtype, None)
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

    @property
    def takes_importance(self) -> bool:
        return self.name in ENCODERS

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, how: Find = find
    ) -> dict[str, np.ndarray]:
        encoder = ENCODERS.get(self.name)
        if encoder is None or (importance is None and self.layout.encode is not None):
            if self.layout.encode is None:
                what = "is kept as llama.cpp made it: only llama.cpp encodes it (llama-quantize)"
                raise SchemeError(f"{self.name} {what}")
            return self.encode(array, dtype)
        (plane,) = self.planes(array.shape, dtype)
        if importance is not None:
            check_importance(importance, array.shape)
        return {"blocks": encoder.encode(self.layout, array, dtype, importance, how).reshape(plane.shape)}

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        layout = self.layout
        count, columns = matrix(shape)
        chosen = planes["blocks"].reshape(count, columns // layout.block * layout.size)[rows]
        blocks = chosen.reshape(chosen.size // layout.size, layout.size)
        values = np.empty((len(blocks), layout.block), np.float32)
        step = _PIECE_ELEMENTS // layout.block
        for start in range(0, len(blocks), step):
            values[start : start + step] = layout.values(blocks[start : start + step], ggml_numpy)
        return values.reshape(len(chosen), columns)

    @property
    def fallback(self) -> GGML | None:
        name = FALLBACKS.get(self.name)
        return None if name is None else GGML(name)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return True

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        # Scales lie among the codes: checking them reads the whole tensor.
        for name in self.layout.bad_scales(planes["blocks"].reshape(-1, self.layout.size)):
            yield "blocks", f"a scale ({name}) is {'above 252' if name == 'e' else 'not finite'}"
