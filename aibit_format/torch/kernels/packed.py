"""Multiplies inputs with packed weights on a CPU: codes are decoded in registers, and the weight is read once.

``FORMATS`` says which of the compiled formats a scheme's planes are. Values are the reference's in float32, but where a
zero point or a bias is a number of its own: code * scale + bias is rounded otherwise than (code - zero) * scale, by an
ulp of the larger term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[reportPrivateImportUsage]

from ... import native
from ...schemes import Scheme
from ...schemes.base import ROW, TENSOR
from ...schemes.cluster import Cluster
from ...schemes.cluster_group import ClusterGroup
from ...schemes.fp8 import Fp8E4M3
from ...schemes.fp8_block import Fp8Block
from ...schemes.ggml import GGML
from ...schemes.int4_group import SYMMETRIC_ZERO, Int4Group
from ...schemes.int8_affine import Int8Absmax, Int8ZeroPoint
from ...schemes.int_group import BIAS, NONE, IntGroup
from ...schemes.microscaling import MXFP4, MXFP8, NVFP4
from ...schemes.ternary import Ternary
from .openmp import parallel, threads
from .operators import NAMES as _NAMES

FEW_ROWS = 16  # of the input; for more it is faster to decode the weight, a piece at a time
ACTIVATIONS = ("float32", "int16", "int8")
_ZEROS: dict[str, Any] = {"zeros": "zero_point", "zero_type": "u8"}
_UNIT = 16  # columns; a compiled group has a multiple
_BLOCKS = frozenset({
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "q1_0", "q2_0",
    "tq2_0", "mxfp4", "nvfp4",
})  # fmt: skip
COMPILED = native.packed_target is not None and parallel() is not None


@dataclass(frozen=True, slots=True)
class Format:
    """Describes planes as the compiled code takes them: value = (code - middle - zero) * scale, or ... * scale + bias.

    ``group`` is how many columns have the same scale, and ``rows`` how many rows; 0 stands for all. ``zeros`` is the
    role of zero points or of biases, ``factor`` that of a number which all scales are multiplied by. ``reciprocal``
    says that they are divided by it; without a factor, that codes are divided by scales.
    """

    name: str
    codes: str = "codes"
    scales: str | None = None
    zeros: str | None = None
    biased: bool = False
    factor: str | None = None
    reciprocal: bool = False
    book: str | None = None
    group: int = 0
    rows: int = 1
    middle: int = 0
    scale_type: str = "none"
    zero_type: str = "none"

    def parts(self, planes: Mapping[str, torch.Tensor], features: int) -> tuple[Any, ...]:
        """Return what ``native.packed_weight`` makes a weight of, over the memory of its planes."""

        def memory(role: str | None) -> np.ndarray | None:
            return None if role is None else planes[role].detach().contiguous().view(-1).view(torch.uint8).numpy()

        return (
            self.name, memory(self.codes), memory(self.scales), memory(self.zeros), memory(self.book),
            memory(self.factor), self.group, self.rows or max(features, 1), self.scale_type, self.zero_type,
            self.biased, self.reciprocal, self.middle,
        )  # fmt: skip

    def weight(self, planes: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> PackedWeight:
        """Return a weight [out, in] over the memory of its planes."""
        return PackedWeight(native.packed_weight(*shape, *self.parts(planes, shape[0])), shape)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Holds a weight [out, in] as ``native`` has checked it; it keeps the memory of its planes."""

    kept: object
    shape: tuple[int, int]


def _ggml(scheme: GGML) -> Format | None:
    name = scheme.name.removeprefix("gguf:")
    return Format(name, codes="blocks") if name in _BLOCKS else None


def _int4_group(scheme: Int4Group) -> Format | None:
    if scheme.ordered or scheme.group % _UNIT:  # in act-order any two columns may be in one group
        return None
    plain = Format("nibbles", scales="scale", scale_type="f16", group=scheme.group)
    return replace(plain, middle=SYMMETRIC_ZERO) if scheme.symmetric else replace(plain, **_ZEROS)


def _int_group(scheme: IntGroup) -> Format | None:
    if scheme.ordered or scheme.group % _UNIT:
        return None
    steps = dict(scheme.steps)
    scale = steps.pop("scale")
    ((zeros, zero),) = steps.items() or [(None, "none")]
    middle = scheme.middle if scheme.zero == NONE and scheme.bits < 8 else 0  # of 8 bits, 128 is taken away in any case
    return Format(
        f"u{scheme.bits}", scales="scale", scale_type=scale, zeros=zeros, zero_type=zero, biased=scheme.zero == BIAS,
        middle=middle, group=scheme.group,
    )  # fmt: skip


def _grouped(scheme: Int8Absmax | Int8ZeroPoint | Fp8E4M3) -> Format:
    name = {"i8": "s8", "u8": "u8", "f8_e4m3": "e4m3"}[scheme.codes_dtype]
    group = 0 if scheme.group in (ROW, TENSOR) else scheme.group
    plain = Format(name, scales="scale", scale_type="f32", group=group, rows=0 if scheme.group == TENSOR else 1)
    return replace(plain, **_ZEROS) if "zero_point" in scheme.step_planes else plain


def _block_scaled(scheme: Fp8Block | MXFP4 | MXFP8) -> Format | None:
    name = {"f4_e2m1": "e2m1", "f8_e4m3": "e4m3", "f8_e5m2": "e5m2"}[scheme.codes]
    rows, group = scheme.block
    if group % _UNIT:
        return None
    return Format(name, scales="scale", scale_type=scheme.steps["scale"], group=group, rows=rows)


def _nvfp4(scheme: NVFP4) -> Format:
    return Format(
        "e2m1", scales="scale", scale_type="f8_e4m3", group=16, factor="global_scale",
        reciprocal=bool(scheme.reciprocal),
    )  # fmt: skip


def _ternary(scheme: Ternary) -> Format:
    return Format(
        "u2", scales="scale", scale_type=scheme.whole["scale"], rows=0, middle=1, reciprocal=bool(scheme.reciprocal)
    )


def _cluster(scheme: Cluster) -> Format:
    return Format(f"book{scheme.bits}", book="codebook")


def _cluster_group(scheme: ClusterGroup) -> Format | None:
    if scheme.group % _UNIT:
        return None
    return Format(f"book{scheme.bits}", book="codebook", scales="scale", scale_type="f16", group=scheme.group)


FORMATS: dict[type[Scheme], Callable[[Any], Format | None]] = {
    GGML: _ggml, Int4Group: _int4_group, IntGroup: _int_group, Int8Absmax: _grouped, Int8ZeroPoint: _grouped,
    Fp8E4M3: _grouped, Fp8Block: _block_scaled, MXFP4: _block_scaled, MXFP8: _block_scaled, NVFP4: _nvfp4,
    Ternary: _ternary, Cluster: _cluster, ClusterGroup: _cluster_group,
}  # fmt: skip


@cache
def format_of(scheme: Scheme) -> Format | None:
    """Return the compiled format that a scheme's planes are in; None if there is none."""
    make = FORMATS.get(type(scheme))
    return make(scheme) if make else None


@dataclass(frozen=True, slots=True)
class PackedProduct:
    """Multiplies few rows of inputs with a weight in a compiled format, and decodes rows of it for many.

    ``activations`` says to what inputs are rounded (see ``native.packed_product``): by default float32 inputs stay as
    they are, and those of 16 bits become multiples of the largest magnitude of 256 columns divided by 32767, which is
    closer than results of 16 bits show.
    """

    format: Format

    def accepts(self, x: torch.Tensor) -> bool:
        """Return whether x [..., in] is multiplied with codes: few rows of floats, on a CPU."""
        return x.is_cpu and COMPILED and x.dtype in _NAMES and x.numel() <= FEW_ROWS * x.size(-1)

    def is_exact(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in] keeps what its dtype can tell apart: always, with activations by their dtype."""
        return True

    def decodes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether rows are decoded to ``dtype`` on a device."""
        return COMPILED and device.type == "cpu" and dtype in _NAMES

    def multiply(
        self, x: torch.Tensor, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Multiply x [rows, in] with a weight [out, in]: [rows, out] in the dtype of x."""
        return self.times(x, self.format.weight(planes, shape), bias)

    def times(
        self, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, activations: str | None = None
    ) -> torch.Tensor:
        """Multiply x [..., in] with a weight: [..., out] in the dtype of x; None: activations by that dtype.

        A layer of a small model takes less time than a few calls of torch, so there are as few as can be.
        """
        return self.products(x, (weight,), (bias,), activations)[0]

    def products(
        self, x: torch.Tensor, weights: Sequence[PackedWeight], biases: Sequence[torch.Tensor | None],
        activations: str | None = None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Multiply x [..., in] with weights of as many columns in one call: for each, [..., out], as ``times`` does."""
        columns = weights[0].shape[1]
        *outer, width = x.shape
        if width != columns:
            raise ValueError(f"inputs of {width} columns, where the weight has {columns}")
        outs, dtype = [x.new_empty((*outer, weight.shape[0])) for weight in weights], _NAMES[x.dtype]
        if x.is_neg() or not x.is_contiguous():
            x = x.resolve_neg().contiguous()
        added, added_dtype = _biases(biases)
        native.packed_product(
            tuple([weight.kept for weight in weights]), x.numel() // columns if columns else len(x), to_dlpack(x),
            dtype, added, added_dtype, tuple([to_dlpack(out) for out in outs]),
            activations or ("float32" if dtype == "f32" else "int16"), None, *threads(),
        )  # fmt: skip
        return outs

    def rows(self, weight: PackedWeight, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Decode consecutive rows of a weight [out, in] to [rows, in] in ``dtype``."""
        start, stop, _ = rows.indices(weight.shape[0])
        out = torch.empty(max(0, stop - start), weight.shape[1], dtype=dtype)
        part = range(start, start + len(out))
        native.packed_values(weight.kept, part, _NAMES[dtype], to_dlpack(out), None, *threads())
        return out


def _biases(biases: Sequence[torch.Tensor | None]) -> tuple[tuple[Any, ...], str]:
    """Return biases as compiled code takes them, and the dtype of all."""
    found = [bias for bias in biases if bias is not None]
    if not found:
        return (None,) * len(biases), "f32"
    dtypes = {bias.dtype for bias in found}
    dtype = found[0].dtype if len(dtypes) == 1 and found[0].dtype in _NAMES else torch.float32
    return tuple(
        [None if bias is None else to_dlpack(bias.to(dtype).detach().contiguous()) for bias in biases]
    ), _NAMES[dtype]


def product(scheme: Scheme) -> PackedProduct | None:
    """Return the product of a scheme whose planes are in a compiled format."""
    found = format_of(scheme)
    return PackedProduct(found) if found else None
