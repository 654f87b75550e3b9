"""Implements ``int-group``: unsigned codes of 1 to 8 bits with a scale, and a zero point or a bias, per group of a row.

A row of K elements is cut into groups of ``group``, the last of which may be short; ``group=row`` makes the row one
group. The scale is f16, bf16 or f32. ``zero`` says what code stands for zero, all arithmetic being float32::

    zero=none     value = (code - 2^(bits - 1)) * scale       compressed-tensors, torchao, Gemma's
    zero=code     value = (code - zero_point) * scale         zero_point u8; GPTQ, AWQ, compressed-tensors
    zero=float    value = (code - zero_point) * scale         zero_point in the scale's dtype; HQQ
    zero=bias     value = code * scale + bias                 bias in the scale's dtype; MLX

rounding after each operation. With ``ordered=1`` (act-order) ``group_index`` says which group each column is in.

The encoder rounds to nearest, with the numbers that are stored: scale = max|x| / (2^bits - 1) * 2 without zero points,
as in ``calculate_qparams`` of compressed-tensors, else the range of the group, which includes zero, divided by
2^bits - 1, as there and in HQQ's and MLX's quantizers before they search. A group of zeros has scale 1. With
``search=1`` scales and zero points are searched for (``searched``); with ``search=hqq`` zero points alone, as HQQ does
(``half_quadratic``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import DTYPES, from_float32, to_float32
from ..errors import SchemeError
from .base import ROW, Planes, PlaneSpec
from .block_scaled import (
    BlockScaled,
    Spread,
    Steps,
    check_block,
    check_word,
    dtype_of,
    dtype_words,
    magnitude,
    near_scales,
    stored_scale,
)
from .half_quadratic import zero_points
from .scale_grids import integers, integers_from_zero
from .scale_search import NUMPY, Grid, Groups, Pair
from .scale_search import Steps as SearchSteps
from .searched import HQQ, PLAIN, Numbers

BITS = (1, 2, 3, 4, 5, 6, 8)
_SCALES = dtype_words("f16", "bf16", "f32")
ZEROS = {"none": 0, "code": 1, "float": 2, "bias": 3}
NONE, CODE, FLOAT, BIAS = ZEROS.values()


@dataclass(frozen=True)
class IntGroup(BlockScaled):
    """Store unsigned codes, packed from the lowest bits up."""

    name: ClassVar[str] = "int-group"
    words = {"group": {"row": ROW}, "scale": _SCALES, "zero": ZEROS, "search": {"none": PLAIN, "hqq": HQQ}}
    signed = True  # AutoRound and MLX write negative scales

    bits: int = 4
    group: int = 128
    scale: int = DTYPES["f16"].code
    zero: int = NONE
    ordered: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in BITS:
            raise self.refuse(f"{self.name}: bits {self.bits}, one of {', '.join(map(str, BITS))}")
        check_block(self, group=self.group)
        check_word(self, scale=self.scale, zero=self.zero)
        if self.ordered not in (0, 1):
            raise self.refuse(f"{self.name}: ordered {self.ordered}, 0 or 1")
        if self.search == HQQ and self.zero != FLOAT:
            raise self.refuse(f"{self.name}: search hqq finds zero points that are floats: zero=float")
        if self.ordered and self.group == ROW:
            raise self.refuse(f"{self.name}: columns of one group have no order: group row, ordered 1")

    @property
    def codes(self) -> str:
        return f"u{self.bits}"

    @property
    def block(self) -> tuple[int, int]:
        return 1, self.group

    @property
    def steps(self) -> dict[str, str]:
        scale = dtype_of(_SCALES, self.scale)
        zero = {NONE: {}, CODE: {"zero_point": "u8"}, FLOAT: {"zero_point": scale}, BIAS: {"bias": scale}}
        return {"scale": scale, **zero[self.zero]}

    @property
    def middle(self) -> int:
        """Return the code that stands for zero where there are no zero points."""
        return 1 << (self.bits - 1)

    def others(self, shape: tuple[int, ...]) -> tuple[PlaneSpec, ...]:
        return (PlaneSpec("group_index", "i32", shape[-1:]),) if self.ordered else ()

    def spread(self, step: np.ndarray, planes: Planes, columns: int) -> np.ndarray:
        return step[:, planes["group_index"]] if self.ordered else super().spread(step, planes, columns)

    def dequantized(self, values: Any, steps: Steps, spread: Spread) -> Any:
        if self.zero in (CODE, FLOAT):
            values -= spread(steps["zero_point"])
        elif self.zero == NONE:
            values -= self.middle
        values *= spread(steps["scale"])
        if self.zero == BIAS:
            values += spread(steps["bias"])
        return values

    def fit(self, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
        levels, dtype = np.float32((1 << self.bits) - 1), dtype_of(_SCALES, self.scale)
        reach = magnitude(low, high) * np.float32(2) if self.zero == NONE else high - low
        planes = {"scale": stored_scale(reach / levels, dtype)}
        zero = np.float32(0) - low / to_float32(planes["scale"], dtype)  # never minus zero
        if self.zero == CODE:
            planes["zero_point"] = np.clip(np.rint(zero), 0, levels).astype(np.uint8)
        elif self.zero == FLOAT:
            planes["zero_point"] = from_float32(zero, dtype)
        elif self.zero == BIAS:
            planes["bias"] = from_float32(low + np.float32(0), dtype)
        return planes

    def quantized(self, values: np.ndarray, steps: Steps, spread: Spread) -> np.ndarray:
        if self.zero == BIAS:
            values -= spread(steps["bias"])
        values /= spread(steps["scale"])
        if self.zero in (CODE, FLOAT):
            values += spread(steps["zero_point"])
        np.rint(values, out=values)
        if self.zero == NONE:
            values += np.float32(self.middle)
        return np.clip(values, 0, (1 << self.bits) - 1, out=values).astype(np.uint8)

    @property
    def grid_of_codes(self) -> Grid:
        return integers(self.bits) if self.zero == NONE else integers_from_zero(self.bits)

    def stored(self, scale: np.ndarray, zero: np.ndarray, plain: Numbers) -> Sequence[Numbers]:
        dtype = self.steps["scale"]
        (found,) = near_scales(scale, dtype)
        if self.zero == NONE:
            return [{"scale": found}]
        if self.zero == CODE:
            below = np.floor(zero).clip(0, (1 << self.bits) - 1).astype(np.uint8)
            above = np.ceil(zero).clip(0, (1 << self.bits) - 1).astype(np.uint8)
            return [{"scale": found, "zero_point": each} for each in (below, above)]
        if self.zero == FLOAT:
            return [{"scale": found, "zero_point": from_float32(_held(zero, dtype), dtype)}]
        return [{"scale": found, "bias": from_float32(_held(np.float32(0) - zero * scale, dtype), dtype)}]

    def real(self, numbers: Numbers) -> Pair:
        scale = to_float32(numbers["scale"], self.steps["scale"])
        if self.zero == NONE:
            return scale, np.zeros(scale.shape, np.float32)
        if self.zero == BIAS:
            return scale, np.float32(0) - to_float32(numbers["bias"], self.steps["bias"]) / scale
        return scale, to_float32(numbers["zero_point"], self.steps["zero_point"])

    def improved(self, groups: Groups, plain: Numbers, steps: SearchSteps = NUMPY) -> Numbers:
        if self.search != HQQ:
            return super().improved(groups, plain, steps)
        values = to_float32(groups.values, groups.dtype)
        there = np.tile(groups.weights > 0, (len(values) // len(groups.weights), 1)).astype(np.float32)
        zero = zero_points(values.T.copy(), there.T.copy(), *self.real(plain), (1 << self.bits) - 1)
        dtype = self.steps["zero_point"]
        return {**plain, "zero_point": from_float32(_held(zero, dtype), dtype)}

    def encode_weighted(
        self, array: np.ndarray, dtype: str, importance: np.ndarray | None, steps: SearchSteps = NUMPY
    ) -> dict[str, np.ndarray]:
        if self.ordered:
            raise SchemeError(f"{self.name}: the order of columns comes with a checkpoint; encode with ordered=0")
        return super().encode_weighted(array, dtype, importance, steps)

    def by_rows(self, shape: tuple[int, ...]) -> bool:
        return not self.ordered

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        yield from super().bad_values(planes)
        # GPTQ's first format stores zero - 1 in the bits of a code, so that a zero point may be one more.
        if self.zero == CODE and (largest := planes["zero_point"].max(initial=0)) > 1 << self.bits:
            yield "zero_point", f"a zero point is {largest}, more than {1 << self.bits}"
        if self.ordered and (index := planes["group_index"]).size:
            groups = planes["scale"].shape[-1]
            if index.min() < 0 or index.max() >= groups:
                yield "group_index", f"groups {index.min()} to {index.max()} of {groups}"


def _held(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Clip numbers, f32, to what a dtype of scales holds."""
    return numbers.clip(-65504, 65504) if dtype == "f16" else numbers
