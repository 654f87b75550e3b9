"""Products of float inputs with a matrix of 8-bit whole numbers, without a copy of the matrix.

Which is fast depends on the processor, so it is asked here what there is, and nowhere else.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from bitsandbytes.functional import has_avx512bf16

from ... import native
from ...interop import to_numpy
from .openmp import parallel, threads

_PIECE = 1 << 18  # elements of the matrix a thread widens at a time: in float32 they stay in the caches of its core
# Of the input; for more it is faster to widen the matrix once. 16 is also the least that a GPU's tensor cores multiply.
FEW_ROWS = 16
# Whether bf16 matrices are fast: processors without it are several times slower at them than at float32 ones.
BF16 = has_avx512bf16()
COMPILED = native.available and parallel() != 0
# Whether codes are always multiplied in float32, so that nothing is lost whatever the dtype of the inputs.
IN_FLOAT32 = COMPILED and not BF16


def elsewhere(x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether bitsandbytes has to do it: gradients are wanted, dtypes are chosen for it, or a compiler looks on."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return wanted or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


def has_kernel(x: torch.Tensor) -> bool:
    """Whether ``kernel.small_product`` is for x [rows, in]: few rows of 16 bits, on a GPU that multiplies bf16."""
    short = x.dtype in (torch.bfloat16, torch.float16)
    return x.device.type == "cuda" and len(x) <= FEW_ROWS and short and _has_triton(x.device)


@cache
def _has_triton(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def times_codes(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, factor: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """On a CPU, x [rows, in] times codes i8 [out, in], scaled in float32: [rows, out] in the dtype of x.

    Codes are multiplied in float32, or in bf16 where that is faster; then the inputs are rounded to it, products are
    added in float32, and sums are rounded to bf16. That is for many rows on processors that multiply bf16; and for few
    rows, where there is no compiled code, as torch has a kernel in bf16 that reads 8-bit codes as they are.

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
    """x [rows, in] times codes i8 [out, in], widened to the dtype of x a piece at a time: [rows, out] in that dtype."""
    out_features, in_features = codes.shape
    product = x.new_empty(len(x), out_features)
    step = max(1, min(_PIECE * torch.get_num_threads() // max(in_features, 1), out_features))
    piece = x.new_empty(step, in_features)
    for start in range(0, out_features, step):
        part = codes[start : start + step]
        values = piece[: len(part)].copy_(part)
        torch.mm(x, values.T, out=product[:, start : start + len(part)])
    return product


@cache
def _ones(count: int) -> torch.Tensor:
    """The scales that torch's kernel wants; it takes them in bf16, which would round the true ones."""
    return torch.ones(count, dtype=torch.bfloat16)
