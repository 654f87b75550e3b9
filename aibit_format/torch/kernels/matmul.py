"""Multiplies float inputs with a matrix of 8-bit whole numbers, without a copy of the matrix.

What is fast depends on the processor. It is asked here, and nowhere else, what the processor has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch

from ... import native
from ...interop import to_numpy
from ...schemes.base import ROW
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Int8Absmax
from ...schemes.w8a8 import Int8Dynamic
from . import packed
from .openmp import parallel, threads
from .operators import NAMES

_PIECE_ELEMENTS = 1 << 18  # of the matrix that a thread widens at a time: in float32 they stay in its caches
# Of the input; for more it is faster to widen the matrix once. A tile of the Triton kernel has as many.
FEW_ROWS = 16
# Whether matrices in 16 bits are fast: processors without are several times slower at them than at float32 ones.
BF16: bool = torch.cpu._is_avx512_bf16_supported()
FP16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
COMPILED = native.available and parallel() is not None
# Whether codes are always multiplied in float32, so that nothing is lost whatever the dtype of the inputs.
IN_FLOAT32 = COMPILED and not BF16


class Product(Protocol):
    """Describes what multiplies inputs with planes as they are: the capability ``product`` of a scheme."""

    def accepts(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in] is multiplied this way on its device."""
        ...

    def is_exact(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in], which it accepts, keeps what its dtype can tell apart on the way."""
        ...

    def multiply(
        self, x: torch.Tensor, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Multiply x [rows, in] with a weight of ``shape`` [out, in]: [rows, out] in the dtype of x."""
        ...


@dataclass(frozen=True, slots=True)
class RowProduct:
    """Multiplies inputs with codes i8 [out, in] as they are, and scales the sums: for schemes with one scale a row.

    ``scales`` is the role of the plane of scales, f32 with an element a row; ``factor`` multiplies all of them.
    ``rounds`` says that inputs may be rounded to bf16 on the way, where that is faster.
    """

    scales: str
    factor: float
    rounds: bool

    def accepts(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in] is multiplied this way on its device."""
        if x.device.type == "cpu":
            return x.dtype in NAMES and (IN_FLOAT32 or x.dtype == torch.bfloat16 or self.rounds)
        return has_kernel(x)

    def is_exact(self, x: torch.Tensor) -> bool:
        """Return whether x [rows, in], which it accepts, keeps what its dtype can tell apart on the way."""
        on_cpu = x.device.type == "cpu"
        return x.dtype == torch.bfloat16 or (on_cpu and COMPILED and (IN_FLOAT32 or len(x) <= FEW_ROWS))

    def multiply(
        self, x: torch.Tensor, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Multiply x [rows, in] with a weight of ``shape`` [out, in]: [rows, out] in the dtype of x."""
        return self(x, planes["codes"], planes[self.scales].view(-1), bias)

    def __call__(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Multiply x [rows, in] with codes, scaled in float32: [rows, out] in the dtype of x."""
        if has_kernel(x):
            from .triton_int8 import small_product  # Triton is there where CUDA is

            return small_product(x, codes, scales, self.factor, bias).to(x.dtype)
        return times_codes(x, codes, scales, self.factor, bias)


def int8_product(scheme: Int8) -> RowProduct:
    """Return the product of LLM.int8's rows. On a CPU they come here only where ``weight_only`` asked for it."""
    return RowProduct("row_absmax", float(np.float32(1 / 127)), rounds=True)


def int8_absmax_product(scheme: Int8Absmax) -> Product | None:
    """Return the product of rows with a scale each, or that of groups."""
    return RowProduct("scale", 1.0, rounds=False) if scheme.group == ROW else packed.product(scheme)


def w8a8_product(scheme: Int8Dynamic) -> RowProduct:
    """Return the product with inputs as they are, which ``weight_only`` asks for."""
    return RowProduct("scale", 1.0, rounds=False)


def fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which this CPU multiplies many rows of floats of a dtype fastest, without rounding them.

    That is float32 for 16 bits that a processor does not multiply: torch takes four times as long with those.
    """
    return dtype if {torch.bfloat16: BF16, torch.float16: FP16}.get(dtype, True) else torch.float32


def elsewhere(x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Return whether bitsandbytes has to multiply: for gradients, under autocast, and when a compiler traces."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return wanted or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


def has_kernel(x: torch.Tensor) -> bool:
    """Return whether the Triton kernel takes x [rows, in]: few rows of 16 bits, on a GPU that multiplies bf16."""
    short = x.dtype in (torch.bfloat16, torch.float16)
    return x.device.type == "cuda" and len(x) <= FEW_ROWS and short and _has_triton(x.device)


@cache
def _has_triton(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def times_codes(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, factor: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply x [rows, in] with codes i8 [out, in] on a CPU, scaled in float32: [rows, out] in the dtype of x.

    Codes are multiplied in float32, or in bf16 where that is faster; there the inputs are rounded to bf16, products
    are added in float32, and sums are rounded to bf16. bf16 is faster for many rows on processors that multiply it,
    and for few rows without compiled code: torch has a kernel in bf16 that reads 8-bit codes as they are.

    Args:
        scales: f32 [out].
        factor: what all scales are multiplied by.
        bias: [out], added in float32.
    """
    out_features, in_features = codes.shape
    if len(x) <= FEW_ROWS and COMPILED:
        (values, dtype), product = to_numpy(x), torch.empty(len(x), out_features, dtype=x.dtype)
        added = None if bias is None else bias.detach().float().numpy()
        native.float_linear(
            values, dtype, codes.numpy(), scales.numpy(), factor, added, to_numpy(product)[0], *threads()
        )
        return product
    if len(x) <= FEW_ROWS and in_features % 64 == 0 and out_features % 16 == 0:
        short = x.to(torch.bfloat16).contiguous()
        sums = torch.ops.aten._weight_int8pack_mm(short, codes, _ones(out_features))
    else:
        sums = widened(x.to(torch.bfloat16 if BF16 else torch.float32), codes)
    values = sums.float().mul_(scales)
    values = values if factor == 1 else values.mul_(factor)
    return (values if bias is None else values + bias).to(x.dtype)


def widened(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Multiply x [rows, in] with codes i8 [out, in], widened to its dtype a piece at a time: [rows, out] in it."""
    out_features, in_features = codes.shape
    product = x.new_empty(len(x), out_features)
    step = max(1, min(_PIECE_ELEMENTS * torch.get_num_threads() // max(in_features, 1), out_features))
    piece = x.new_empty(step, in_features)
    for start in range(0, out_features, step):
        part = codes[start : start + step]
        values = piece[: len(part)].copy_(part)
        torch.mm(x, values.T, out=product[:, start : start + len(part)])
    return product


@cache
def _ones(count: int) -> torch.Tensor:
    """Return the scales that torch's kernel is given; it takes them in bf16, which would round the true ones."""
    return torch.ones(count, dtype=torch.bfloat16)
