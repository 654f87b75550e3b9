"""Decode the schemes of `.aibit` in plain Python, page by page of spec/schemes/.

ggml.md is in `ggml.py`, and the pages on scales of blocks are in `blocks.py`.
"""

from __future__ import annotations

import math
import struct
from itertools import pairwise

from . import blocks, ggml
from .numbers import (
    DTYPES,
    FLOATS,
    Planes,
    Scheme,
    Shape,
    Spec,
    bf16_bits,
    f32,
    f32_of_int,
    is_absmax,
    is_row_absmax,
    is_scale,
    is_zero,
    need,
    need_values,
    no_parameters,
    product,
    unpacked,
    unpacked_rows,
    up,
)

# plain.md


def plain(name: str) -> Scheme:
    def decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
        return [f32_of_int(x) if isinstance(x, int) else f32(x) for x in planes["values"]]

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        if name == "bool":
            need_values(planes["values"], lambda x: x <= 1, "bool")

    return Scheme(
        no_parameters, lambda p, s: True, [name], lambda p, s, dtype: [("values", dtype, [*s])], check, decode
    )


# int8.md

INV127 = f32(1 / 127)


def int8_decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
    k, absmax = s[-1], planes["row_absmax"]
    return [f32(f32(code * absmax[i // k]) * INV127) for i, code in enumerate(planes["codes"])]


INT8 = Scheme(
    no_parameters,
    lambda p, s: len(s) >= 2,
    FLOATS,
    lambda p, s, dtype: [("codes", "i8", [*s]), ("row_absmax", "f32", [*s[:-1]])],
    lambda p, s, planes: need_values(planes["row_absmax"], is_row_absmax, "row_absmax"),
    int8_decode,
)

# int8_affine.md and fp8.md

TENSOR = 0xFFFFFFFF  # group=tensor


def scale_shape(group: int, s: Shape) -> list[int]:
    return [1] if group == TENSOR else [*s[:-1], up(s[-1], group) if group else 1]


def scale_index(group: int, s: Shape, i: int) -> int:
    """Which scale element i has."""
    row, k = divmod(i, s[-1])
    return 0 if group == TENSOR else row * up(s[-1], group) + k // group if group else row


def affine(codes: str, groups: bool, zero_points: bool) -> Scheme:
    def parameters(p: Shape) -> bool:
        multiple = groups and 16 <= p[0] <= 65536 and p[0] % 16 == 0
        return (p[0] in (0, TENSOR) or multiple) and not any(p[1:])

    def planes_of(p: Shape, s: Shape, dtype: str) -> list[Spec]:
        scales = scale_shape(p[0], s)
        return [("codes", codes, [*s]), ("scale", "f32", scales)] + [("zero_point", "u8", scales)] * zero_points

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        need_values(planes["scale"], is_scale, "scale")
        for scale, zero in zip(planes["scale"], planes.get("zero_point", ()), strict=False):
            need(scale != 0 or zero == 0, "AIB-E502", f"zero point {zero} where the scale is 0")
        need(not any(math.isnan(code) for code in planes["codes"]), "AIB-E503", "a code is NaN")

    def decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
        found = []
        for i, code in enumerate(planes["codes"]):
            j = scale_index(p[0], s, i)
            found.append(f32((code - planes["zero_point"][j] if zero_points else code) * planes["scale"][j]))
        return found

    return Scheme(parameters, lambda p, s: len(s) >= 1, FLOATS, planes_of, check, decode)


# w8a8.md: parameter asymmetric


def w8a8(static: bool) -> Scheme:
    """The weight is that of int8-absmax by rows; the scale and the zero point of inputs have the same rules."""
    weight = affine("i8", False, False)

    def planes_of(p: Shape, s: Shape, dtype: str) -> list[Spec]:
        inputs = [("input_scale", "f32", [*s[:-2], 1]), ("input_zero_point", "i8", [*s[:-2], 1])]
        return weight.planes((0,), s, dtype) + inputs[: static + p[0]]

    def check(p: Shape, s: Shape, planes: Planes) -> None:
        weight.check(p, s, planes)
        zeros = planes.get("input_zero_point", [])
        if static:
            need_values(planes["input_scale"], is_scale, "input_scale")
        for step, zero in zip(planes.get("input_scale", []), zeros, strict=False):
            need(step != 0 or zero == 0, "AIB-E502", f"zero point {zero} where the scale of inputs is 0")

    return Scheme(
        lambda p: p[0] <= static and not any(p[1:]),
        lambda p, s: len(s) >= 2,
        FLOATS, planes_of, check, lambda p, s, planes: weight.decode((0,), s, planes),
    )  # fmt: skip


# int8_outlier.md


def outlier(at: int) -> Scheme:
    """How many rows are kept apart is parameter 1 of the scheme in version 1, and parameter 0 of the tensor since."""

    def planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
        m, k = p[at], s[-1]
        return [*INT8.planes(p, s, dtype), ("outlier_index", "u32", [m]), ("outlier_values", "f16", [m, k])]

    return Scheme(
        lambda p: 1 <= p[0] <= 65535 and not any(p[2 if at == 1 else 1 :]),
        lambda p, s: len(s) >= 2 and p[at] <= product(s[:-1]) <= 1 << 32,
        FLOATS, planes, outlier_check, outlier_decode, of_tensor=at > 1,
    )  # fmt: skip


def outlier_check(p: Shape, s: Shape, planes: Planes) -> None:
    INT8.check(p, s, planes)
    k, index = s[-1], planes["outlier_index"]
    need(index == sorted(set(index)), "AIB-E502", "outlier_index is not strictly increasing")
    need_values(index, lambda row: row < product(s[:-1]), "outlier_index")
    need_values(planes["outlier_values"], math.isfinite, "outlier_values")
    for row in index:
        spare = [planes["row_absmax"][row], *planes["codes"][row * k : row * k + k]]
        need(not any(spare), "AIB-E502", f"row {row} is an outlier, and row_absmax or codes are not 0")


def outlier_decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
    found, k = int8_decode(p, s, planes), s[-1]
    for m, row in enumerate(planes["outlier_index"]):
        found[row * k : row * k + k] = planes["outlier_values"][m * k : m * k + k]
    return found


# cluster.md


def cluster_planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
    return [("codes", "u8", [*s[:-1], up(s[-1] * p[0], 8)]), ("codebook", "f32", [2 ** p[0]])]


def cluster_check(p: Shape, s: Shape, planes: Planes) -> None:
    book = planes["codebook"]
    need_values(book, lambda x: abs(x) <= 65504 and (x != 0 or is_zero(x)), "codebook")
    used = book.index(max(book)) + 1
    rises = all(a < b for a, b in pairwise(book[:used]))
    need(rises and set(book[used:]) <= {book[used - 1]}, "AIB-E502", "the codebook is not strictly increasing")
    codes = unpacked_rows(planes["codes"], p[0], s)
    need(all(code < used for code in codes), "AIB-E503", "a code of an entry that only repeats the largest value")


def cluster_decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
    return [planes["codebook"][code] for code in unpacked_rows(planes["codes"], p[0], s)]


# cluster_group.md: parameters bits, group


def cluster_group_planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
    codes, codebook = cluster_planes(p, s, dtype)
    return [codes, ("scale", "f16", [*s[:-1], up(s[-1], p[1] or s[-1] or 1)]), codebook]


def cluster_group_check(p: Shape, s: Shape, planes: Planes) -> None:
    cluster_check(p, s, planes)
    need_values(planes["scale"], is_scale, "scale")


def cluster_group_decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
    k = s[-1] or 1
    group = p[1] or k
    each = up(k, group)
    values = cluster_decode(p, s, planes)
    return [f32(x * planes["scale"][i // k * each + i % k // group]) for i, x in enumerate(values)]


# int4_group.md: parameters group, symmetric, ordered


def int4_parameters(p: Shape) -> bool:
    group, symmetric, ordered, *rest = p
    allowed = group in (0, 16, 32, 64, 128, 256, 512, 1024) and symmetric <= 1 and ordered <= 1
    return allowed and not (ordered and group == 0) and not any(rest)


def int4_groups(p: Shape, s: Shape) -> int:
    return up(s[-1], p[0] or max(s[-1], 1))


def int4_planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
    scales = [*s[:-1], int4_groups(p, s)]
    specs = [("codes", "u8", [*s[:-1], up(s[-1], 2)]), ("scale", "f16", scales)]
    return specs + [("zero_point", "u8", scales)] * (not p[1]) + [("group_index", "i32", [s[-1]])] * p[2]


def int4_check(p: Shape, s: Shape, planes: Planes) -> None:
    need_values(planes["scale"], math.isfinite, "scale")
    need_values(planes.get("zero_point", []), lambda z: z <= 16, "zero_point")
    need_values(planes.get("group_index", []), lambda g: 0 <= g < int4_groups(p, s), "group_index")
    unpacked_rows(planes["codes"], 4, s)


def int4_decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
    found, groups = [], int4_groups(p, s)
    for i, code in enumerate(unpacked_rows(planes["codes"], 4, s)):
        n, k = divmod(i, s[-1])
        j = n * groups + (planes["group_index"][k] if p[2] else k // p[0] if p[0] else 0)
        found.append(f32((code - (8 if p[1] else planes["zero_point"][j])) * planes["scale"][j]))
    return found


# fourbit.md: parameters block_size, nested

NF4_BITS = """BF800000 BF3239B1 BF066B30 BECA32A0 BE91A24D BE3D353F BDBA7871 00000000
              3DA2FAFF 3E24CAE3 3E7C04DD 3EAD033A 3EE1A4B8 3F1007AB 3F3913B3 3F800000"""
NF4 = [struct.unpack(">f", bytes.fromhex(word))[0] for word in NF4_BITS.split()]
FP4 = [f32(sign * x / 12) for sign in (1, -1) for x in (0, 1 / 16, 8, 12, 4, 6, 2, 3)]


def nested_map() -> list[float]:
    """What the codes of nested scales stand for."""
    values, tenth = [0.0, 1.0], f32(0.1)
    for p in range(7):
        n, step = 2**p, f32(f32(1 - tenth) / 2**p)
        edges = [f32(tenth + step * i if i < (n + 1) // 2 else 1 - step * (n - i)) for i in range(n + 1)]
        for i in range(n):
            middle = f32(f32(10.0 ** (p - 6)) * f32(f32(edges[i] + edges[i + 1]) / 2))
            values += [middle, -middle]
    return sorted(values)


NESTED = nested_map()


def fourbit_parameters(p: Shape) -> bool:
    return p[0] in (32, 64, 128, 256, 512, 1024, 2048, 4096) and p[1] <= 1 and not any(p[2:])


def fourbit_planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
    blocks = up(product(s), p[0])
    codes = ("codes", "u8", [up(product(s), 2)])
    if not p[1]:
        return [codes, ("absmax", "f32", [blocks])]
    nested = [("nested_absmax", "f32", [up(blocks, 256)]), ("nested_offset", "f32", [1])]
    return [codes, ("absmax", "u8", [blocks]), *nested]


def fourbit_check(p: Shape, s: Shape, planes: Planes) -> None:
    role = "nested_absmax" if p[1] else "absmax"
    need_values(planes[role], is_absmax, role)
    need_values(planes.get("nested_offset", []), math.isfinite, "nested_offset")


def fourbit_scales(p: Shape, planes: Planes) -> list[float]:
    if not p[1]:
        return planes["absmax"]
    groups, offset = planes["nested_absmax"], planes["nested_offset"][0]
    return [f32(f32(NESTED[code] * groups[j // 256]) + offset) for j, code in enumerate(planes["absmax"])]


def fourbit(book: list[float]) -> Scheme:
    def decode(p: Shape, s: Shape, planes: Planes) -> list[float]:
        scales, codes = fourbit_scales(p, planes), list(unpacked(planes["codes"], 4))
        return [f32(book[codes[i]] * scales[i // p[0]]) for i in range(product(s))]

    return Scheme(fourbit_parameters, lambda p, s: len(s) >= 1, FLOATS, fourbit_planes, fourbit_check, decode)


# nf4_cpu.md


def tiled_takes(p: Shape, s: Shape) -> bool:
    return len(s) == 2 and s[0] % 32 == 0 and s[1] % 64 == 0 and s[1] % p[0] == 0


def tiled_planes(p: Shape, s: Shape, dtype: str) -> list[Spec]:
    n, k = s
    return [*fourbit_planes(p, s, dtype), ("tiles", "u8", [n, k // 2]), ("tile_absmax", "bf16", [k // p[0], n])]


def tiled_check(p: Shape, s: Shape, planes: Planes) -> None:
    fourbit_check(p, s, planes)
    need_values(planes["tile_absmax"], math.isfinite, "tile_absmax")
    (n, k), c, scales = s, list(unpacked(planes["codes"], 4)), fourbit_scales(p, planes)
    tiles = []
    for g in range(0, n, 32):
        for pair in range(0, k, 2):
            codes = [c[(g + r) * k + pair + side] for r in range(32) for side in (0, 1)]
            tiles += [codes[i] | codes[i + 32] << 4 for i in range(32)]
    need(tiles == planes["tiles"], "AIB-E503", "tiles are not the codes in the order of tiles")
    blocks = k // p[0]
    wanted = [bf16_bits(scales[row * blocks + b]) for b in range(blocks) for row in range(n)]
    found = [bf16_bits(x) for x in planes["tile_absmax"]]
    need(found == wanted, "AIB-E503", "tile_absmax are not the scales in bfloat16")


NF4_SCHEME = fourbit(NF4)
SCHEMES: dict[tuple[str, int], Scheme] = {
    (name, 1): scheme
    for name, scheme in {
        **{dtype.name: plain(dtype.name) for dtype in DTYPES.values()},
        "int8": INT8,
        "int8-absmax": affine("i8", True, False),
        "int8-zp": affine("u8", True, True),
        "fp8-e4m3": affine("f8_e4m3", False, False),
        "int8-outlier": outlier(1),
        "int8-dynamic": w8a8(False),
        "int8-static": w8a8(True),
        "cluster": Scheme(
            lambda p: 2 <= p[0] <= 8 and not any(p[1:]),
            lambda p, s: len(s) >= 1,
            FLOATS, cluster_planes, cluster_check, cluster_decode,
        ),
        "cluster-group": Scheme(
            lambda p: 2 <= p[0] <= 8 and p[1] <= 65536 and not any(p[2:]),
            lambda p, s: len(s) >= 1,
            FLOATS, cluster_group_planes, cluster_group_check, cluster_group_decode,
        ),
        "int4-group": Scheme(
            int4_parameters, lambda p, s: len(s) >= 2, FLOATS, int4_planes, int4_check, int4_decode
        ),
        "nf4": NF4_SCHEME,
        "fp4": fourbit(FP4),
        "nf4-cpu": Scheme(fourbit_parameters, tiled_takes, FLOATS, tiled_planes, tiled_check, NF4_SCHEME.decode),
        **ggml.SCHEMES,
        **blocks.SCHEMES,
    }.items()
} | {("int8-outlier", 2): outlier(6)} | {(name, 2): scheme for name, scheme in ggml.ORDERED.items()}  # fmt: skip
