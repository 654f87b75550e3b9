"""Multiplies inputs with packed weights on a CPU: codes are decoded in registers, and the weight is read once.

``FORMATS`` says which of the compiled formats a scheme's planes are. Values are the reference's in float32, but where a
zero point or a bias is a number of its own: code * scale + bias is rounded otherwise than (code - zero) * scale, by an
ulp of the larger term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from ... import native
from ...schemes import Scheme
from ...schemes.base import ROW, TENSOR
from ...schemes.cluster import Cluster
from ...schemes.fp8 import Fp8E4M3
from ...schemes.fp8_block import Fp8Block
from ...schemes.ggml import GGML
from ...schemes.int4_group import SYMMETRIC_ZERO, Int4Group
from ...schemes.int8_affine import Int8Absmax, Int8ZeroPoint
from ...schemes.int_group import BIAS, NONE, IntGroup
from ...schemes.microscaling import MXFP4, MXFP8, NVFP4
from ...schemes.ternary import Ternary
from .openmp import parallel, threads

FEW_ROWS = 16  # of the input; for more it is faster to decode the weight, a piece at a time
ACTIVATIONS = ("float32", "int16", "int8")
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
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

    def weight(self, planes: Mapping[str, torch.Tensor], features: int) -> tuple[Any, ...]:
        """Return a weight as ``native.packed_product`` takes it, over the memory of its planes."""

        def memory(role: str | None) -> np.ndarray | None:
            return None if role is None else planes[role].detach().contiguous().view(-1).view(torch.uint8).numpy()

        return (
            self.name, memory(self.codes), memory(self.scales), memory(self.zeros), memory(self.book),
            memory(self.factor), self.group, self.rows or max(features, 1), self.scale_type, self.zero_type,
            self.biased, self.reciprocal, self.middle,
        )  # fmt: skip


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


FORMATS: dict[type[Scheme], Callable[[Any], Format | None]] = {
    GGML: _ggml, Int4Group: _int4_group, IntGroup: _int_group, Int8Absmax: _grouped, Int8ZeroPoint: _grouped,
    Fp8E4M3: _grouped, Fp8Block: _block_scaled, MXFP4: _block_scaled, MXFP8: _block_scaled, NVFP4: _nvfp4,
    Ternary: _ternary, Cluster: _cluster,
}  # fmt: skip


@cache
def format_of(scheme: Scheme) -> Format | None:
    """Return the compiled format that a scheme's planes are in; None if there is none."""
    make = FORMATS.get(type(scheme))
    return make(scheme) if make else None


@dataclass(frozen=True, slots=True)
class PackedProduct:
    """Multiplies few rows of inputs with a weight in a compiled format, and decodes rows of it for many.

    The weight is a tuple that ``format.weight`` makes of planes. ``activations`` says to what inputs are rounded (see
    ``native.packed_product``): by default float32 inputs stay as they are, and those of 16 bits become multiples of the
    largest magnitude of 256 columns divided by 32767, which is closer than results of 16 bits show.
    """

    format: Format

    def accepts(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in] is multiplied with codes: few rows of floats, on a CPU."""
        return len(x) <= FEW_ROWS and self.decodes(x.device, x.dtype)

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
        return self.times(x, self.format.weight(planes, shape[0]), shape[0], bias)

    def times(
        self, x: torch.Tensor, weight: tuple[Any, ...], features: int, bias: torch.Tensor | None,
        activations: str | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Do the same with a weight that was made before; None: activations by the dtype of x."""
        out = torch.empty(len(x), features, dtype=x.dtype)
        added = None if bias is None else bias.detach().float().numpy()
        kind = activations or ("float32" if x.dtype == torch.float32 else "int16")
        native.packed_product(
            _memory(x.resolve_neg().contiguous()), _NAMES[x.dtype], weight, added, _memory(out), kind, None, *threads()
        )
        return out

    def rows(self, weight: tuple[Any, ...], shape: tuple[int, int], rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Decode consecutive rows of a weight [out, in] to [rows, in] in ``dtype``."""
        start, stop, _ = rows.indices(shape[0])
        out = torch.empty(max(0, stop - start), shape[1], dtype=dtype)
        part = range(start, start + len(out))
        native.packed_values(weight, shape[0], part, _NAMES[dtype], _memory(out), None, *threads())
        return out


def _memory(matrix: torch.Tensor) -> np.ndarray:
    """Return an array over a contiguous matrix of floats, those of 16 bits as integers."""
    return (matrix if matrix.dtype == torch.float32 else matrix.view(torch.int16)).detach().numpy()


def product(scheme: Scheme) -> PackedProduct | None:
    """Return the product of a scheme whose planes are in a compiled format."""
    found = format_of(scheme)
    return PackedProduct(found) if found else None
