"""Decodes GGML's ``iq`` types, whose codes are indices: of one of 16 values, or of a point of a grid with its signs.

A point stands for the magnitudes of 8 or 4 elements that follow one another (``ggml_grids``). Signs are a bit an
element, or seven bits for eight elements of which an even number is negative. Every step is exact in float32, so the
order of the products does not matter.
"""

from __future__ import annotations

import numpy as np

from .ggml_grids import grid
from .ggml_layout import Fields, Layout, grouped, spread, to_f32

_SIXTEEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # of iq4_nl and iq4_xs; llama.cpp chose them once for all
# Seven bits of signs -> the byte of eight: the last makes the number of negative elements even.
_EIGHT_SIGNS = np.array([bits | (bits.bit_count() & 1) << 7 for bits in range(128)], np.uint8)
_DELTA = np.float32(0.125)  # what iq1 adds to, or takes from, every element of its grid


def _words(data: np.ndarray, dtype: str) -> np.ndarray:
    """View bytes, u8 [n, bytes], as little-endian words [n, words]."""
    return np.ascontiguousarray(data).view(dtype)


def _scaled(scale: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Multiply values, f32 [n, 256] in any shape, by the scales of their groups, f32 [n, groups]."""
    return scale[:, :, None] * values.reshape(*scale.shape, -1)


def _points(name: str, index: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Look up points by their index, [n, k], and negate where ``signs``, u8 [n, 32], has a bit: f32 [n, 256]."""
    values = grid(name).take(index, axis=0).reshape(len(index), -1)
    values.view(np.uint32)[:] ^= np.unpackbits(signs, axis=1, bitorder="little").astype(np.uint32) << 31
    return values


def _scale_and_signs(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack words of a 4-bit scale above four times seven bits of signs: f32 [n, words] and u8 [n, 4 * words]."""
    words = _words(data, "<u4")
    seven = words[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    return to_f32(words >> 28), _EIGHT_SIGNS.take(seven).reshape(len(words), -1)


def _with_high(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return indices of more than 8 bits, u16, from a byte each and the bits above it."""
    return low | high.astype(np.uint16) << 8


def _decode_iq4_nl(f: Fields) -> np.ndarray:
    return f["d"] * _SIXTEEN.take(spread(f["qs"], 4, 16))


def _decode_iq4_xs(f: Fields) -> np.ndarray:
    six = spread(f["scales_l"], 4, 1) | spread(f["scales_h"], 2, 1) << 4
    scale = f["d"] * (to_f32(six) - np.float32(32))
    return scale[:, :, None] * grouped(_SIXTEEN.take(spread(f["qs"], 4, 16)), 8)


def _halves(four_bits: np.ndarray) -> np.ndarray:
    """Add a half to scales of four bits, f32."""
    return to_f32(four_bits) + np.float32(0.5)


def _decode_iq3_xxs(f: Fields) -> np.ndarray:
    scale, signs = _scale_and_signs(f["scales"])
    return _scaled(f["d"] * _halves(scale) * np.float32(0.5), _points("iq3_xxs", f["qs"], signs))


def _decode_iq3_s(f: Fields) -> np.ndarray:
    index = _with_high(f["qs"], spread(f["qh"], 1, 1))
    scale = to_f32(spread(f["scales"], 4, 1) * np.uint8(2) + np.uint8(1))
    return _scaled(f["d"] * scale, _points("iq3_s", index, f["signs"]))


def _decode_iq2_xxs(f: Fields) -> np.ndarray:
    groups = f["qs"].reshape(len(f["qs"]), 8, 8)  # each of four indices and a word
    scale, signs = _scale_and_signs(groups[:, :, 4:].reshape(len(groups), 32))
    index = groups[:, :, :4].reshape(len(groups), 32)
    return _scaled(f["d"] * _halves(scale) * np.float32(0.25), _points("iq2_xxs", index, signs))


def _decode_iq2_xs(f: Fields) -> np.ndarray:
    words = _words(f["qs"], "<u2")
    signs = _EIGHT_SIGNS.take(words >> 9)
    scale = _halves(spread(f["scales"], 4, 1))
    return _scaled(f["d"] * scale * np.float32(0.25), _points("iq2_xs", words & np.uint16(511), signs))


def _decode_iq2_s(f: Fields) -> np.ndarray:
    index = _with_high(f["qs"], spread(f["qh"], 2, 1))
    scale = _halves(spread(f["scales"], 4, 1))
    return _scaled(f["d"] * scale * np.float32(0.25), _points("iq2_s", index, f["signs"]))


def _decode_iq1(d: np.ndarray, scale: np.ndarray, index: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Decode points of iq1, by their index [n, 32], and shift each by the delta, whose signs are bool [n, 32]."""
    delta = np.where(negative, -_DELTA, _DELTA)[:, :, None]
    return _scaled(d * to_f32(scale * np.uint16(2) + np.uint16(1)), grid("iq1").take(index, axis=0) + delta)


def _decode_iq1_s(f: Fields) -> np.ndarray:
    words = _words(f["qh"], "<u2")
    high = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)).reshape(len(words), 32)
    negative = np.repeat(words >> 15 != 0, 4, axis=1)
    return _decode_iq1(f["d"], words >> 12 & np.uint16(7), _with_high(f["qs"], high), negative)


def _decode_iq1_m(f: Fields) -> np.ndarray:
    words = _words(f["scales"], "<u2")
    bits = np.bitwise_or.reduce(words >> 12 << np.arange(0, 16, 4, dtype=np.uint16), axis=1, keepdims=True)
    d = bits.astype("<u2").view("<f2").astype(np.float32)
    scale = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)).reshape(len(words), 16)
    high = spread(f["qh"], 4, 1)
    return _decode_iq1(d, scale, _with_high(f["qs"], high & np.uint8(7)), high >= 8)


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
