"""Decode codes of a dtype with scales of blocks: fp8_block.md, int_group.md, microscaling.md and ternary.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass

from .numbers import DTYPES, FLOATS, Planes, Scheme, Shape, Spec, f32, is_absmax, need, need_values, up

SIZES = range(65537)  # of blocks; 0 stands for the whole dimension
F16, BF16, F32, E4M3, E5M2, E8M0 = 10, 11, 12, 14, 15, 16
NONE, CODE, FLOAT, BIAS = range(4)  # the parameter zero of int-group


@dataclass(frozen=True)
class Layout:
    """What the parameters of a scheme say: dtypes of codes and of numbers by role, and the size of a block."""

    codes: str
    rows: int
    columns: int
    each: dict[str, str]  # numbers of blocks
    whole: dict[str, str]  # numbers of matrices
    ordered: int = 0

    def sizes(self, s: Shape) -> tuple[int, int]:
        return self.rows or max(s[-2], 1), self.columns or max(s[-1], 1)

    def planes(self, s: Shape) -> list[Spec]:
        rows, columns = self.sizes(s)
        grid = [*s[:-2], up(s[-2], rows), up(s[-1], columns)]
        return [
            ("codes", self.codes, [*s]),
            *((role, dtype, grid) for role, dtype in self.each.items()),
            *((role, dtype, [*s[:-2], 1]) for role, dtype in self.whole.items()),
            *[("group_index", "i32", [s[-1]])] * self.ordered,
        ]

    def numbers(self, s: Shape, planes: Planes, i: int) -> dict[str, float]:
        """The numbers that element i goes with, by role."""
        (row, k), (rows, columns) = divmod(i, s[-1]), self.sizes(s)
        matrix, n = divmod(row, s[-2])
        column = planes["group_index"][k] if self.ordered else k // columns
        at = (matrix * up(s[-2], rows) + n // rows) * up(s[-1], columns) + column
        found = {role: planes[role][at] for role in self.each}
        return found | {role: planes[role][matrix] for role in self.whole}


Value = Callable[[Shape, float, dict[str, float]], float]  # of the parameters, a code and its numbers
Check = Callable[[Shape, Shape, Planes], None]


def scheme(
    choices: list[Container[int]],
    layout: Callable[[Shape], Layout],
    value: Value,
    more: Check,
    fit: Callable[[Shape], bool] = lambda p: True,
) -> Scheme:
    def parameters(p: Shape) -> bool:
        allowed = all(number in choice for number, choice in zip(p, choices, strict=False))
        return allowed and fit(p) and not any(p[len(choices) :])

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        for role, _, _ in layout(p).planes(s)[1:]:
            need_values(planes[role], math.isfinite, role)
        more(p, s, planes)
        need(all(math.isfinite(code) for code in planes["codes"]), "AIB-E503", "a code is not finite")

    def decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
        of = layout(p)
        return [value(p, code, of.numbers(s, planes, i)) for i, code in enumerate(planes["codes"])]

    return Scheme(parameters, lambda p, s: len(s) >= 2, FLOATS, lambda p, s, dtype: layout(p).planes(s), check, decode)


def scales(p: Shape, s: Shape, planes: Planes) -> None:
    need_values(planes["scale"], is_absmax, "scale")


def times(p: Shape, code: float, n: dict[str, float]) -> float:
    return f32(code * n["scale"])


# microscaling.md


def nvfp4_scale(p: Shape, scale: float, overall: float) -> float:
    return f32(scale / overall if p[0] else scale * overall)


def nvfp4_check(p: Shape, s: Shape, planes: Planes) -> None:
    scales(p, s, planes)
    need_values(planes["global_scale"], lambda x: is_absmax(x) and not (p[0] and x == 0), "global_scale")
    each = len(planes["scale"]) // max(len(planes["global_scale"]), 1)
    for i, scale in enumerate(planes["scale"]):
        found = nvfp4_scale(p, scale, planes["global_scale"][i // each])
        need(math.isfinite(found), "AIB-E502", f"scale {i} with the global scale is not finite")


def nvfp4_value(p: Shape, code: float, n: dict[str, float]) -> float:
    return f32(code * nvfp4_scale(p, n["scale"], n["global_scale"]))


# int_group.md: parameters bits, group, scale, zero, ordered


def int_layout(p: Shape) -> Layout:
    bits, group, scale, zero, ordered = p[:5]
    name = DTYPES[scale].name
    more = {CODE: {"zero_point": "u8"}, FLOAT: {"zero_point": name}, BIAS: {"bias": name}}.get(zero, {})
    return Layout(f"u{bits}", 1, group, {"scale": name, **more}, {}, ordered)


def int_check(p: Shape, s: Shape, planes: Planes) -> None:
    if p[3] == CODE:
        need_values(planes["zero_point"], lambda z: z <= 1 << p[0], "zero_point")
    groups = up(s[-1], p[1] or max(s[-1], 1))
    need_values(planes.get("group_index", []), lambda g: 0 <= g < groups, "group_index")


def int_value(p: Shape, code: float, n: dict[str, float]) -> float:
    if p[3] == BIAS:
        return f32(f32(code * n["scale"]) + n["bias"])
    return f32(f32(code - n.get("zero_point", 1 << p[0] - 1)) * n["scale"])


# ternary.md: parameters scale, reciprocal


def ternary_check(p: Shape, s: Shape, planes: Planes) -> None:
    need_values(planes["scale"], lambda x: is_absmax(x) and not (p[1] and x == 0), "scale")
    need(all(code <= 2 for code in planes["codes"]), "AIB-E503", "a code is 3")


def ternary_value(p: Shape, code: float, n: dict[str, float]) -> float:
    return f32((code - 1) / n["scale"] if p[1] else (code - 1) * n["scale"])


BINARY = (0, 1)
SCHEMES = {
    "fp8-block": scheme(
        [SIZES, SIZES, (F16, BF16, F32, E8M0)],
        lambda p: Layout("f8_e4m3", p[0], p[1], {"scale": DTYPES[p[2]].name}, {}), times, scales,
    ),
    "int-group": scheme(
        [(1, 2, 3, 4, 5, 6, 8), SIZES, (F16, BF16, F32), range(4), BINARY], int_layout, int_value, int_check,
        lambda p: not (p[4] and p[1] == 0),
    ),
    "mxfp4": scheme([], lambda p: Layout("f4_e2m1", 1, 32, {"scale": "f8_e8m0"}, {}), times, scales),
    "mxfp8": scheme(
        [(E4M3, E5M2)], lambda p: Layout(DTYPES[p[0]].name, 1, 32, {"scale": "f8_e8m0"}, {}), times, scales
    ),
    "nvfp4": scheme(
        [BINARY], lambda p: Layout("f4_e2m1", 1, 16, {"scale": "f8_e4m3"}, {"global_scale": "f32"}),
        nvfp4_value, nvfp4_check,
    ),
    "ternary": scheme(
        [(F16, BF16, F32), BINARY], lambda p: Layout("u2", 1, 0, {}, {"scale": DTYPES[p[0]].name}),
        ternary_value, ternary_check,
    ),
}  # fmt: skip
