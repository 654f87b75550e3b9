"""Decodes GGML's ``iq`` types, whose codes are indices: of one of 16 values, or of a point of a grid with its signs.

A point stands for the magnitudes of 8 or 4 elements that follow one another (``ggml_grids``). Signs are a bit an
element, or seven bits for eight elements of which an even number is negative. Every step is exact in float32, so the
order of the products does not matter.
"""

from __future__ import annotations

import numpy as np

from .ggml_grids import grid
from .ggml_layout import Array, Fields, Layout, Operations, grouped

SIXTEEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # of iq4_nl and iq4_xs; llama.cpp chose them once for all
# Seven bits of signs -> the byte of eight: the last makes the number of negative elements even.
_EIGHT_SIGNS = np.array([bits | (bits.bit_count() & 1) << 7 for bits in range(128)], np.uint8)
_DELTAS = np.array([0.125, -0.125], np.float32)  # what iq1 adds to every element of its grid


def _scaled(scale: Array, values: Array) -> Array:
    """Multiply values, f32 [n, 256] in any shape, by the scales of their groups, f32 [n, groups]."""
    return scale[:, :, None] * values.reshape(*scale.shape, -1)


def _points(name: str, index: Array, signs: Array, ops: Operations) -> Array:
    """Look up points by their index, [n, k], and negate where ``signs``, u8 [n, 32], has a bit: f32 [n, 256]."""
    return ops.negated(ops.take(grid(name), index).reshape(len(index), -1), signs)


def _scale_and_signs(data: Array, ops: Operations) -> tuple[Array, Array]:
    """Unpack words of a 4-bit scale above four times seven bits of signs: f32 [n, words] and u8 [n, 4 * words]."""
    words = ops.words(data, 4)
    return ops.to_f32(words >> 28), ops.take(_EIGHT_SIGNS, ops.four(words, 7)).reshape(len(words), -1)


def _with_high(low: Array, high: Array, ops: Operations) -> Array:
    """Return indices of more than 8 bits from a byte each and the bits above it."""
    return low | ops.wide(high) << 8


def _decode_iq4_nl(f: Fields, ops: Operations) -> Array:
    return f["d"] * ops.take(SIXTEEN, ops.spread(f["qs"], 4, 16))


def _decode_iq4_xs(f: Fields, ops: Operations) -> Array:
    six = ops.spread(f["scales_l"], 4, 1) | ops.spread(f["scales_h"], 2, 1) << 4
    scale = f["d"] * (ops.to_f32(six) - 32)
    return scale[:, :, None] * grouped(ops.take(SIXTEEN, ops.spread(f["qs"], 4, 16)), 8)


def _decode_iq3_xxs(f: Fields, ops: Operations) -> Array:
    scale, signs = _scale_and_signs(f["scales"], ops)
    return _scaled(f["d"] * (scale + 0.5) * 0.5, _points("iq3_xxs", f["qs"], signs, ops))


def _decode_iq3_s(f: Fields, ops: Operations) -> Array:
    index = _with_high(f["qs"], ops.spread(f["qh"], 1, 1), ops)
    scale = ops.to_f32(ops.spread(f["scales"], 4, 1)) * 2 + 1
    return _scaled(f["d"] * scale, _points("iq3_s", index, f["signs"], ops))


def _decode_iq2_xxs(f: Fields, ops: Operations) -> Array:
    groups = f["qs"].reshape(len(f["qs"]), 8, 8)  # each of four indices and a word
    scale, signs = _scale_and_signs(groups[:, :, 4:].reshape(len(groups), 32), ops)
    index = groups[:, :, :4].reshape(len(groups), 32)
    return _scaled(f["d"] * (scale + 0.5) * 0.25, _points("iq2_xxs", index, signs, ops))


def _decode_iq2_xs(f: Fields, ops: Operations) -> Array:
    words = ops.words(f["qs"], 2)
    signs = ops.take(_EIGHT_SIGNS, words >> 9)
    scale = ops.to_f32(ops.spread(f["scales"], 4, 1)) + 0.5
    return _scaled(f["d"] * scale * 0.25, _points("iq2_xs", words & 511, signs, ops))


def _decode_iq2_s(f: Fields, ops: Operations) -> Array:
    index = _with_high(f["qs"], ops.spread(f["qh"], 2, 1), ops)
    scale = ops.to_f32(ops.spread(f["scales"], 4, 1)) + 0.5
    return _scaled(f["d"] * scale * 0.25, _points("iq2_s", index, f["signs"], ops))


def _decode_iq1(d: Array, scale: Array, index: Array, negative: Array, ops: Operations) -> Array:
    """Decode points of iq1, by their index [n, 32], and shift them by deltas, of which [n, k] say the sign, 0 or 1."""
    points = ops.take(grid("iq1"), index).reshape(*negative.shape, -1)
    return _scaled(d * (ops.to_f32(scale) * 2 + 1), points + ops.take(_DELTAS, negative)[:, :, None])


def _decode_iq1_s(f: Fields, ops: Operations) -> Array:
    words = ops.words(f["qh"], 2)
    index = _with_high(f["qs"], ops.four(words, 3).reshape(len(words), 32), ops)
    return _decode_iq1(f["d"], words >> 12 & 7, index, words >> 15, ops)


def _decode_iq1_m(f: Fields, ops: Operations) -> Array:
    quarters = f["scales"][:, 1::2]  # in the upper four bits of each is a part of the block's scale
    d = ops.half(quarters[:, ::2] >> 4 | quarters[:, 1::2] & 0xF0)
    scale = ops.four(ops.words(f["scales"], 2), 3).reshape(len(quarters), 16)
    high = ops.spread(f["qh"], 4, 1)
    return _decode_iq1(d, scale, _with_high(f["qs"], high & 7, ops), high >> 3, ops)


def _scattered_half_is_not_finite(scales: np.ndarray) -> np.ndarray:
    """Check the exponent of iq1_m's float16: two bits are the highest of byte 5, three lie below that of byte 7."""
    return (scales[:, 5] & 0xC0 == 0xC0) & (scales[:, 7] & 0x70 == 0x70)


CODEBOOK_LAYOUTS: dict[str, Layout] = {
    "gguf:iq4_nl": Layout(32, {"d": 2, "qs": 16}, _decode_iq4_nl),
    "gguf:iq4_xs": Layout(256, {"d": 2, "scales_h": 2, "scales_l": 4, "qs": 128}, _decode_iq4_xs),
    "gguf:iq3_xxs": Layout(256, {"d": 2, "qs": 64, "scales": 32}, _decode_iq3_xxs),
    "gguf:iq3_s": Layout(256, {"d": 2, "qs": 64, "qh": 8, "signs": 32, "scales": 4}, _decode_iq3_s),
    "gguf:iq2_xxs": Layout(256, {"d": 2, "qs": 64}, _decode_iq2_xxs),
    "gguf:iq2_xs": Layout(256, {"d": 2, "qs": 64, "scales": 8}, _decode_iq2_xs),
    "gguf:iq2_s": Layout(256, {"d": 2, "qs": 32, "signs": 32, "qh": 8, "scales": 8}, _decode_iq2_s),
    "gguf:iq1_s": Layout(256, {"d": 2, "qs": 32, "qh": 16}, _decode_iq1_s),
    "gguf:iq1_m": Layout(
        256, {"qs": 32, "qh": 16, "scales": 8}, _decode_iq1_m, other_scales={"scales": _scattered_half_is_not_finite}
    ),
}
