"""Decode the schemes `gguf:...` in plain Python, from spec/schemes/ggml.md; types with grids are in `ggml_grids.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from . import ggml_grids
from .ggml_grids import scattered, spread
from .numbers import FLOATS, Planes, Scheme, Shape, Spec, f32, need, no_parameters, packed, product


def signed(field: Sequence[int]) -> list[int]:
    return [byte - 256 if byte > 127 else byte for byte in field]


def added(low: list[int], high: list[int], factor: int, base: int = 0) -> list[int]:
    return [a + factor * b + base for a, b in zip(low, high, strict=True)]


def six_bits(scales: Sequence[int]) -> tuple[list[int], list[int]]:
    """The scales s and minima t of q4_k and q5_k."""
    low, minimum, high = scales[:4], scales[4:8], scales[8:]
    s = [x % 64 for x in low] + [h % 16 + 16 * (x // 64) for x, h in zip(low, high, strict=True)]
    t = [x % 64 for x in minimum] + [h // 16 + 16 * (x // 64) for x, h in zip(minimum, high, strict=True)]
    return s, t


def with_minima(d: float, dmin: float, s: list[int], t: list[int], q: list[int]) -> list[float]:
    size = len(q) // len(s)
    return [f32(f32(f32(d * s[i // size]) * x) - f32(dmin * t[i // size])) for i, x in enumerate(q)]


def scaled(d: float, s: list[int], q: list[int]) -> list[float]:
    return [f32(f32(d * s[i // 16]) * x) for i, x in enumerate(q)]


def around(d: float, q: list[int], zero: int = 0) -> list[float]:
    return [f32(d * (x - zero)) for x in q]


def above(d: float, m: float, q: list[int]) -> list[float]:
    return [f32(f32(d * x) + m) for x in q]


def five_bits(qs: Sequence[int], qh: Sequence[int]) -> list[int]:
    return added(spread(qs, 4, 16), [qh[i // 8] >> i % 8 & 1 for i in range(32)], 16)


def q3_k(hmask: list[int], qs: list[int], scales: list[int], d: float) -> list[float]:
    s = added(spread(scales[:8], 4, 8), spread(scales[8:], 2, 4), 16, -32)
    return scaled(d, s, added(spread(qs, 2, 32), spread(hmask, 1, 32), 4, -4))


def q6_k(ql: list[int], qh: list[int], scales: list[int], d: float) -> list[float]:
    return scaled(d, signed(scales), added(spread(ql, 4, 64), spread(qh, 2, 32), 16, -32))


def digits(field: Sequence[int], n: int) -> list[int]:
    """The ternary digits of every byte: the first ones of all, then the second ones, and so on."""
    return [3 * (b * 3**k % 256) // 256 for k in range(n) for b in field]


def tq1_0(qs: list[int], qh: list[int], d: float) -> list[float]:
    return around(d, digits(qs[:32], 5) + digits(qs[32:], 5) + digits(qh, 4), 1)


def e4m3_half(d: int) -> float:
    exponent, fraction = d // 8 % 16, d % 8
    return math.ldexp(8 + fraction, exponent - 11) if exponent else math.ldexp(fraction, -10)


TWICE_E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
SIXTEEN = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def mxfp4(e: list[int], qs: list[int]) -> list[float]:
    return around(math.ldexp(1, e[0] - 128), [TWICE_E2M1[q] for q in spread(qs, 4, 16)])


def nvfp4(d: list[int], qs: list[int]) -> list[float]:
    return [f32(e4m3_half(d[i // 16]) * TWICE_E2M1[q]) for i, q in enumerate(spread(qs, 4, 8))]


def iq4_xs(d: float, scales_h: list[int], scales_l: list[int], qs: list[int]) -> list[float]:
    s = added(spread(scales_l, 4, 1), spread(scales_h, 2, 1), 16, -32)
    return [f32(f32(d * s[i // 32]) * SIXTEEN[q]) for i, q in enumerate(spread(qs, 4, 16))]


# Elements of a block, its fields with their bytes (0: an f16), and what they decode to.
GGML = {
    "q4_0": (32, {"d": 0, "qs": 16}, lambda d, qs: around(d, spread(qs, 4, 16), 8)),
    "q4_1": (32, {"d": 0, "m": 0, "qs": 16}, lambda d, m, qs: above(d, m, spread(qs, 4, 16))),
    "q5_0": (32, {"d": 0, "qh": 4, "qs": 16}, lambda d, qh, qs: around(d, five_bits(qs, qh), 16)),
    "q5_1": (32, {"d": 0, "m": 0, "qh": 4, "qs": 16}, lambda d, m, qh, qs: above(d, m, five_bits(qs, qh))),
    "q8_0": (32, {"d": 0, "qs": 32}, lambda d, qs: around(d, signed(qs))),
    "q2_k": (256, {"scales": 16, "qs": 64, "d": 0, "dmin": 0}, lambda s, qs, d, dmin: with_minima(
        d, dmin, [x % 16 for x in s], [x // 16 for x in s], spread(qs, 2, 32))),
    "q3_k": (256, {"hmask": 32, "qs": 64, "scales": 12, "d": 0}, q3_k),
    "q4_k": (256, {"d": 0, "dmin": 0, "scales": 12, "qs": 128}, lambda d, dmin, scales, qs: with_minima(
        d, dmin, *six_bits(scales), spread(qs, 4, 32))),
    "q5_k": (256, {"d": 0, "dmin": 0, "scales": 12, "qh": 32, "qs": 128}, lambda d, dmin, scales, qh, qs: with_minima(
        d, dmin, *six_bits(scales), added(spread(qs, 4, 32), spread(qh, 1, 32), 16))),
    "q6_k": (256, {"ql": 128, "qh": 64, "scales": 16, "d": 0}, q6_k),
    "q1_0": (128, {"d": 0, "qs": 16}, lambda d, qs: around(d, [2 * q for q in spread(qs, 1, 1)], 1)),
    "q2_0": (64, {"d": 0, "qs": 16}, lambda d, qs: around(d, spread(qs, 2, 1), 1)),
    "tq1_0": (256, {"qs": 48, "qh": 4, "d": 0}, tq1_0),
    "tq2_0": (256, {"qs": 64, "d": 0}, lambda qs, d: around(d, spread(qs, 2, 32), 1)),
    "mxfp4": (32, {"e": 1, "qs": 16}, mxfp4),
    "nvfp4": (64, {"d": 4, "qs": 32}, nvfp4),
    "iq4_nl": (32, {"d": 0, "qs": 16}, lambda d, qs: around(d, [SIXTEEN[q] for q in spread(qs, 4, 16)])),
    "iq4_xs": (256, {"d": 0, "scales_h": 2, "scales_l": 4, "qs": 128}, iq4_xs),
    **ggml_grids.TYPES,
}  # fmt: skip
# Scales that are no f16 of their own: the type and the field, and whether the scale is one that there may be.
OTHER_SCALES: dict[tuple[str, str], Callable[[list[int]], bool]] = {
    ("mxfp4", "e"): lambda e: e[0] <= 252,
    ("nvfp4", "d"): lambda d: all(x % 128 != 127 for x in d),
    ("iq1_m", "scales"): lambda scales: math.isfinite(scattered(scales)),
}


def ggml(kind: str, elements: int, fields: dict[str, int], decoded: Callable[..., list[float]]) -> Scheme:
    size = sum(width or 2 for width in fields.values())

    def blocks(planes: Planes) -> Iterator[list]:
        for start in range(0, len(planes["blocks"]), size):
            values, at = [], start
            for width in fields.values():
                piece = planes["blocks"][at : at + (width or 2)]
                values.append(piece if width else packed("e")(bytes(piece))[0])
                at += width or 2
            yield values

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        for i, values in enumerate(blocks(planes)):
            for name, value in zip(fields, values, strict=True):
                is_scale = math.isfinite if fields[name] == 0 else OTHER_SCALES.get((kind, name))
                need(is_scale is None or is_scale(value), "AIB-E503", f"{name} of block {i} is {value}")

    return Scheme(
        no_parameters,
        lambda p, s: len(s) >= 1 and s[-1] % elements == 0,
        FLOATS,
        lambda p, s, dtype: [("blocks", "u8", [*s[:-1], s[-1] // elements * size])],
        check,
        lambda p, s, planes: [x for values in blocks(planes) for x in decoded(*values)],
    )


def ordered(scheme: Scheme) -> Scheme:
    """Version 2: the blocks of version 1, and the column of them that each column is."""

    def planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
        return [*scheme.planes(p, s, dtype), ("column_order", "i32", [s[-1]])]

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        need(sorted(planes["column_order"]) == [*range(s[-1])], "AIB-E502", "column_order has not each column once")
        scheme.check(p, s, planes)

    def decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
        found, k = scheme.decode(p, s, planes), s[-1]
        return [found[row * k + column] for row in range(product(s[:-1])) for column in planes["column_order"]]

    return Scheme(no_parameters, scheme.takes, FLOATS, planes, check, decode)


SCHEMES = {f"gguf:{name}": ggml(name, *row) for name, row in GGML.items()}
ORDERED = {name: ordered(scheme) for name, scheme in SCHEMES.items()}
