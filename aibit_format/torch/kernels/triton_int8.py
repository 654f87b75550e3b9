"""Multiplies few rows of inputs with int8 weights on a GPU: codes are read once and widened in registers.

Decoding is bound by reading weights: half the bytes of bf16. Everything is in one launch, scales and bias included.
Triton comes with torch where there is CUDA; this module is imported only there (and by tests, with its interpreter).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] - where there is CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, slots=True)
class Tile:
    """Sets the rows and columns of codes in a program's tile, how many tiles are in flight or in use, and warps.

    Few rows, so that all processors have some. Memory answers after some 700 ns, in which an H200's could bring 3.4 MB:
    24 KB have to be on their way to each of its 132 processors. With the inputs that is 72 KiB of shared memory, of
    which the smallest processors since 2020 have 99.
    """

    out: int = 16
    inner: int = 512
    stages: int = 4
    warps: int = 4
    rows: int = 16  # of inputs: the least that tensor cores multiply


TILE = Tile()


@triton.jit
def _kernel(
    x, codes, scales, bias, product, rows, out_features, in_features, factor,
    has_bias: tl.constexpr, tile_rows: tl.constexpr, tile_out: tl.constexpr, tile_in: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, tile_rows)
    out = tl.program_id(0) * tile_out + tl.arange(0, tile_out)
    inner = tl.arange(0, tile_in)
    there = out < out_features
    # 64 bits: a head may have more than 2^31 codes.
    weights = codes + out.to(tl.int64)[None, :] * in_features + inner[:, None]
    inputs = x + row[:, None] * in_features + inner[None, :]
    sums = tl.zeros((tile_rows, tile_out), dtype=tl.float32)
    for start in range(0, in_features, tile_in):
        inside = inner < in_features - start
        a = tl.load(inputs + start, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        b = tl.load(weights + start, mask=inside[:, None] & there[None, :], other=0)
        sums = tl.dot(a, b.to(a.dtype), sums)
    values = sums * tl.load(scales + out, mask=there, other=0.0)[None, :] * factor
    if has_bias:
        values += tl.load(bias + out, mask=there, other=0.0).to(tl.float32)[None, :]
    at = product + row[:, None] * out_features + out[None, :]
    tl.store(at, values.to(product.dtype.element_ty), mask=(row < rows)[:, None] & there[None, :])


def small_product(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, factor: float, bias: torch.Tensor | None,
    tile: Tile = TILE,
) -> torch.Tensor:  # fmt: skip
    """Multiply x [rows, in] in bf16 or f16, at most ``tile.rows``, with codes i8 [out, in]: [rows, out] in its dtype.

    Products are added in float32, and times ``scales`` f32 [out] and ``factor``, plus ``bias`` [out], in float32.
    """
    if len(x) > tile.rows:
        raise ValueError(f"{len(x)} rows of inputs, at most {tile.rows}")
    out_features, in_features = codes.shape
    product = x.new_empty(len(x), out_features)
    kernel: Any = _kernel
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[(triton.cdiv(out_features, tile.out),)](
            x.contiguous(), codes, scales, scales if bias is None else bias, product,
            len(x), out_features, in_features, factor, has_bias=bias is not None,
            tile_rows=tile.rows, tile_out=tile.out, tile_in=tile.inner, num_stages=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
    return product
