"""Modules for schemes that no library has a layer for: planes stay as they are, and are decoded piece by piece.

A forward decodes some rows of the weight, multiplies, and forgets them; the whole weight never exists in the model's
dtype. On a CPU the planes are the mapped pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from ..bridge import torch_dtypes
from ..schemes import Scheme
from ..schemes.base import ROW
from ..schemes.int8 import Int8
from ..schemes.int8_affine import Int8Absmax
from .decode import decode_rows

_PIECE = 1 << 21  # elements decoded at a time
_FEW_ROWS = 16  # of the input: from more on, decoding once and multiplying is faster than the int8 product


class Quantized(nn.Module):
    """A weight in a scheme: its planes as buffers, and its values a few rows at a time.

    Args:
        scheme: how the weight is stored.
        planes: its planes by role, on one device.
        shape: [rows, columns] of the stored weight.
        dtype: the logical dtype, a name of ``aibit_format.dtypes``.
    """

    def __init__(self, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: str) -> None:
        super().__init__()
        self.scheme, self.shape, self.logical_dtype = scheme, shape, dtype
        self._roles = tuple(planes)
        for role, plane in planes.items():
            self.register_buffer(role, plane)

    def planes(self) -> dict[str, torch.Tensor]:
        """The planes by role."""
        return {role: self.get_buffer(role) for role in self._roles}

    def rows(self, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Values of these rows, [rows, columns] in ``dtype``, on the planes' device."""
        return decode_rows(self.scheme, self.planes(), self.shape, self.logical_dtype, rows).to(dtype)

    @property
    def weight(self) -> torch.Tensor:
        """All values, in the logical dtype: made anew each time it is asked for."""
        return self.rows(slice(0, self.shape[0]), torch_dtypes()[self.logical_dtype])

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, scheme={self.scheme.text}"


class QuantizedLinear(Quantized):
    """``nn.Linear`` over a weight in any scheme; products are in the input's dtype."""

    def __init__(
        self,
        scheme: Scheme,
        planes: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        dtype: str,
        bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__(scheme, planes, shape, dtype)
        self.out_features, self.in_features = shape
        self.bias = bias
        self._product = PRODUCTS.get(type(scheme))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, self.in_features)
        product = self._product and self._product(self, flat)
        if product is None:
            product = self._by_pieces(flat)
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def _by_pieces(self, x: torch.Tensor) -> torch.Tensor:
        step = max(1, _PIECE // max(self.in_features, 1))
        if x.requires_grad:
            return torch.cat([linear(x, self._piece(i, step, x.dtype)) for i in range(0, self.out_features, step)], 1)
        product = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            torch.mm(x, self._piece(start, step, x.dtype).T, out=product[:, start : start + step])
        return product

    def _piece(self, start: int, step: int, dtype: torch.dtype) -> torch.Tensor:
        return self.rows(slice(start, min(start + step, self.out_features)), dtype)


class QuantizedEmbedding(Quantized):
    """``nn.Embedding`` over a table in any scheme: only the rows that are looked up are decoded."""

    def __init__(
        self, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: str,
        padding_idx: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(scheme, planes, shape, dtype)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> [..., embedding_dim], in the logical dtype."""
        wanted, places = torch.unique(ids, return_inverse=True)
        if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < self.num_embeddings:
            raise IndexError(f"token ids {int(wanted[0])} to {int(wanted[-1])}: the table has {self.num_embeddings}")
        values = self.rows(wanted, torch_dtypes()[self.logical_dtype])
        return values[places]


def _row_product(module: Quantized, x: torch.Tensor) -> torch.Tensor | None:
    """x times codes, and then the scale of each row: for int8 with a scale a row, on a CPU, without gradients.

    Codes are whole numbers below 256, so bf16 holds them exactly: inputs are rounded to bf16, products are added in
    float32, rounded to bf16, scaled in float32. Few rows of x go to torch's weight-only kernel, which reads codes as
    they are; for many, pieces of the codes are widened and multiplied as bf16 matrices.
    """
    scale = _SCALES[type(module.scheme)](module)
    if scale is None or x.device.type != "cpu" or x.requires_grad:
        return None
    if x.dtype != torch.bfloat16 and not isinstance(module.scheme, Int8):
        return None  # int8 only comes here when it is asked for: others keep the precision of their inputs
    codes, narrow = module.get_buffer("codes"), x.to(torch.bfloat16)
    if len(x) <= _FEW_ROWS and codes.shape[1] % 64 == 0 and codes.shape[0] % 16 == 0:
        product = torch.ops.aten._weight_int8pack_mm(narrow.contiguous(), codes, _ones(len(codes)))
    else:
        product = narrow.new_empty(len(x), len(codes))
        step = max(1, _PIECE // max(codes.shape[1], 1))
        for start in range(0, len(codes), step):
            piece = codes[start : start + step].to(torch.bfloat16)
            product[:, start : start + step] = torch.mm(narrow, piece.T)
    return product.float().mul_(scale).to(x.dtype)


@cache
def _ones(count: int) -> torch.Tensor:
    """The scales that torch's kernel wants; it takes them in bf16, which would round the true ones."""
    return torch.ones(count, dtype=torch.bfloat16)


# f32 [rows]: what each row of codes is to be multiplied by; None if rows do not have one number each.
_SCALES: dict[type[Scheme], Callable[[Quantized], torch.Tensor | None]] = {
    Int8: lambda module: module.get_buffer("row_absmax") * float(np.float32(1 / 127)),
    Int8Absmax: lambda module: module.get_buffer("scale").view(-1) if module.scheme.parameters[0] == ROW else None,
}
PRODUCTS: dict[type[Scheme], Callable[[Quantized, torch.Tensor], torch.Tensor | None]] = dict.fromkeys(
    _SCALES, _row_product
)
