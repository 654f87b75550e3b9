"""Multiplies inputs that are rounded to 8 bits with 8-bit weights: exact sums of whole numbers, scaled in float32.

The arithmetic is that of ``spec/schemes/w8a8.md``, bit for bit on every device: each float operation is one of torch's
that rounds once, and sums of whole numbers are exact however they are made. Which product is the fastest depends on the
processor: the compiled one, or torch's own of 8-bit integers.

Where gradients are wanted they pass straight through the rounding of inputs, as in training that knows of quantization:
that of x is ``grad @ W`` with the decoded weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from ... import native
from ...interop import to_numpy
from ...schemes.int8_affine import LEAST_SCALE
from ...schemes.w8a8 import INPUT_SCALE, INPUT_ZERO_POINT, LARGEST_INPUT, LEAST_INPUT
from . import matmul
from .functional import Weight, learns
from .openmp import threads

Planes = Mapping[str, torch.Tensor]

# torch's product of 8-bit integers is fast where the processor has instructions for it.
_INTEGERS = torch.backends.cpu.get_cpu_capability() == "AVX512"
COMPILED = matmul.COMPILED and not _INTEGERS
_FEW_ROWS = 4  # one by one they are faster than together, for which torch arranges the weight anew each time
_CUDA_ROWS, _CUDA_COLUMNS = 32, 8  # torch's product on CUDA wants more than 16 rows, and multiples of 8
_MOST_COLUMNS = 65536  # with which no sum of 255 * 127 leaves 32 bits
_LARGEST_CODE = 127.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Hold inputs in 8 bits: codes i8 [rows, in], scales f32 [rows] or [1], and a code of zero, i8 [1], or none."""

    codes: torch.Tensor
    scales: torch.Tensor
    zero_point: torch.Tensor | None = None

    @classmethod
    def of(cls, x: torch.Tensor, planes: Planes) -> Inputs:
        """Quantize x [rows, in] with the scale that the planes of a weight state, or each row with its own."""
        scale, zero = planes.get(INPUT_SCALE), planes.get(INPUT_ZERO_POINT)
        values = x.float()
        if scale is None:
            largest = values.abs().amax(1)
            # Not by a Python number, which torch on a GPU multiplies by the inverse of.
            scale = largest / torch.full_like(largest, _LARGEST_CODE)
            scale = torch.where(scale < float(LEAST_SCALE), torch.zeros_like(scale), scale)
        else:
            scale = scale.view(-1)
        inverse = torch.where(scale == 0, scale, scale.reciprocal())
        codes = (values * inverse[:, None]).round_()
        if zero is not None:
            codes += zero.view(-1)
        # A row's own scale leaves nothing to clip, but NaN has to become some code.
        codes = codes.clamp_(LEAST_INPUT, LARGEST_INPUT).to(torch.int8)
        return cls(codes, scale, None if zero is None else zero.view(-1))


def linear(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, row_sums: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply x [rows, in] with a weight [out, in] whose planes say how inputs are quantized, and add ``bias`` [out].

    This is the capability ``linear`` of such schemes.

    Args:
        row_sums: those of the weight's codes, i32 [out]; see ``code_sums``. They are computed if they are needed.

    Returns:
        [rows, out] in the dtype of x.
    """
    if learns(x, bias):
        return _StraightThrough.apply(x, bias, weight)
    return product(x, weight.planes, bias, row_sums)


def product(
    x: torch.Tensor, planes: Planes, bias: torch.Tensor | None, row_sums: torch.Tensor | None = None
) -> torch.Tensor:
    """Do what ``linear`` does, without gradients."""
    codes, scales = planes["codes"], planes["scale"].view(-1)
    if not x.numel() or not codes.numel():
        values = torch.zeros(len(x), len(codes), device=x.device)
        return (values if bias is None else values + bias.float()).to(x.dtype)
    inputs = Inputs.of(x, planes)
    if COMPILED and x.device.type == "cpu" and codes.shape[1] <= _MOST_COLUMNS:
        return _compiled(x, inputs, codes, scales, bias)
    values = _sums(inputs.codes, codes).float() if inputs.zero_point is None else _shifted(inputs, codes, row_sums)
    values *= inputs.scales[:, None] * scales
    if bias is not None:
        values += bias.float()
    return values.to(x.dtype)


def code_sums(codes: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row of codes i8 [out, in], i32 [out]: what a zero point of inputs is multiplied with."""
    return codes.sum(1, dtype=torch.int32)


def _shifted(inputs: Inputs, codes: torch.Tensor, row_sums: torch.Tensor | None) -> torch.Tensor:
    """Return the sums of (input - zero) * code, f32 [rows, out], from those of the codes as they are."""
    zero: Any = inputs.zero_point
    sums = _sums(inputs.codes, codes)
    row_sums = code_sums(codes) if row_sums is None else row_sums
    return (sums - row_sums.to(sums.dtype) * zero.to(sums.dtype)).float()


def _sums(inputs: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the sums of products of codes, exact: i32 [rows, out], or f64 where there is no product of integers."""
    rows, columns = inputs.shape
    multiply = torch.ops.aten._int_mm
    if columns > _MOST_COLUMNS or columns == 1:  # of one column torch (2.13) reads what lies behind the weight
        return matmul.widened(inputs.double(), codes)
    if inputs.device.type == "cpu":
        if 1 < rows <= _FEW_ROWS:
            return torch.cat([multiply(inputs[i : i + 1], codes.t()) for i in range(rows)])
        return multiply(inputs, codes.t())
    if inputs.device.type == "cuda" and not (columns % _CUDA_COLUMNS or len(codes) % _CUDA_COLUMNS):
        return multiply(pad(inputs, (0, 0, 0, max(0, _CUDA_ROWS - rows))), codes.t())[:rows]
    return matmul.widened(inputs.double(), codes)


def _compiled(
    x: torch.Tensor, inputs: Inputs, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply by compiled code, in which inputs have 16 bits, and so are what is left after the zero point is off."""
    wide = inputs.codes.to(torch.int16)
    if inputs.zero_point is not None:
        wide -= inputs.zero_point
    wide, out = pad(wide, (0, -wide.shape[1] % 16)), x.new_empty(len(x), len(codes))
    values, dtype = to_numpy(out)
    row_scales = inputs.scales.expand(len(x)).contiguous()
    native.int8_product(
        wide.numpy(), row_scales.numpy(), codes.numpy(), scales.numpy(), 1.0,
        None if bias is None else bias.detach().float().numpy(), values, dtype, *threads(),
    )  # fmt: skip
    return out


class _StraightThrough(torch.autograd.Function):
    """Computes ``product``; for its gradient the inputs count as what they were before they were rounded."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight: Weight) -> torch.Tensor:
        """Multiply x [rows, in] with a weight."""
        ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        return product(x, weight.planes, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """Return the gradients of x and bias."""
        grad, weight = grads[0], ctx.weight
        of_x = grad @ weight.rows(slice(0, weight.shape[0]), grad.dtype) if ctx.needs_input_grad[0] else None
        of_bias = grad.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None
