"""Computes layers over weights that stay in their planes: a linear layer, and an embedding.

A forward decodes some rows of the weight, multiplies, and forgets them; the whole weight never exists in the model's
dtype. Schemes with the capability ``product`` are multiplied as they are where that is faster. These are functions of
tensors alone: modules call them (``layers.dequantized``), and so do the operators that a compiler sees
(``layers.custom_ops``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional

from ...interop import torch_dtypes
from ...schemes import Scheme, capabilities
from ...schemes.base import matrix
from .decode import decode_rows
from .matmul import Product, fast_dtype
from .packed import PackedProduct

DecodeRows = Callable[[slice, torch.dtype], torch.Tensor]

ORDER = "column_order"  # the plane that says where a weight's columns are; the input of a product is moved
_ON_CPU = 1 << 21  # elements decoded at a time, so that they stay in the cache
_ELSEWHERE = 1 << 24  # on other devices, where each piece is several launches


@dataclass(frozen=True, slots=True)
class Weight:
    """Holds a weight in a scheme: planes by role, and the logical shape [rows, columns] and dtype of its values.

    Planes may be those of a ``stack`` of matrices, of which the weight is the rows from ``first`` on. ``activations``
    says to what compiled products round inputs; see ``packed``.
    """

    scheme: Scheme
    planes: Mapping[str, torch.Tensor]
    shape: tuple[int, int]
    dtype: str
    stack: tuple[int, ...] | None = None
    first: int = 0
    activations: str | None = None

    @classmethod
    def of(cls, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, ...], dtype: str) -> Weight:
        """Return a stored tensor of any shape as a matrix: [product of all sizes but the last, the last]."""
        return cls(scheme, planes, matrix(shape), dtype, shape if len(shape) > 2 else None)

    def rows(self, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Decode rows to [rows, columns] in ``dtype``, on the planes' device."""
        if isinstance(rows, slice):
            rows = slice(self.first + rows.start, self.first + rows.stop)
        elif self.first:
            rows = rows + self.first
        return decode_rows(self.scheme, self.planes, self.stack or self.shape, self.dtype, rows).to(dtype)

    def unordered(self) -> Weight:
        """Return the weight whose columns are as they are stored; see ``in_stored_order``."""
        planes = {role: plane for role, plane in self.planes.items() if role != ORDER}
        return replace(self, scheme=self.scheme.unordered, planes=planes)


def in_stored_order(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Move the columns of x [..., in] to where a weight has them in its planes: column j to ``order[j]``, i32 [in]."""
    places = order.long()
    inverse = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device=places.device))
    return x.index_select(-1, inverse)


def row_product(scheme: Scheme) -> Product | None:
    """Return the product that multiplies a scheme's codes as they are, if there is one."""
    make = capabilities.find(scheme, "product")
    return make(scheme) if make else None


def learns(x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Return whether gradients of a product with x and ``bias`` are wanted."""
    return torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))


def uses_codes(product: Product | None, x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Return whether x [rows, in] is multiplied with codes as they are; products with gradients decode."""
    return product is not None and not x.requires_grad and not learns(x, bias) and product.accepts(x)


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, rounds: bool = True) -> torch.Tensor:
    """Multiply x [rows, in] with a weight [out, in] and add ``bias`` [out]: [rows, out] in the dtype of x.

    ``rounds`` says that inputs of more bits may be rounded to bf16 on the way, if the product is one that does.
    """
    order = weight.planes.get(ORDER)
    if order is not None:
        return linear(in_stored_order(x, order), weight.unordered(), bias, rounds)
    product = row_product(weight.scheme) if weight.stack is None else None
    if product is not None and uses_codes(product, x, bias) and (rounds or product.is_exact(x)):
        if isinstance(product, PackedProduct):
            return product.times(x, product.format.weight(weight.planes, weight.shape), bias, weight.activations)
        return product.multiply(x, weight.planes, weight.shape, bias)
    rows = weight.rows
    if isinstance(product, PackedProduct) and product.decodes(x.device, x.dtype):
        rows = partial(product.rows, product.format.weight(weight.planes, weight.shape))
    values = by_pieces(x, weight.shape, rows)
    return values if bias is None else values + bias.to(values.dtype)


def by_pieces(x: torch.Tensor, shape: tuple[int, int], rows: DecodeRows) -> torch.Tensor:
    """Multiply x [rows, in] with a weight of ``shape`` [out, in], decoding as many rows at a time as stay in cache."""
    out_features, in_features = shape
    step = max(1, (_ON_CPU if x.device.type == "cpu" else _ELSEWHERE) // max(in_features, 1))
    pieces = (slice(start, min(start + step, out_features)) for start in range(0, out_features, step))
    if x.requires_grad:
        return torch.cat([functional.linear(x, rows(piece, x.dtype)) for piece in pieces], 1)
    wide = x.to(fast_dtype(x.dtype)) if x.device.type == "cpu" else x
    product = wide.new_empty(len(x), out_features)
    for piece in pieces:
        torch.mm(wide, rows(piece, wide.dtype).T, out=product[:, piece])
    return product.to(x.dtype)


def embedding(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Look up ids [...] in a table: [..., columns], in the logical dtype. Only the rows that are looked up are decoded.

    Raises:
        IndexError: an id is not in the table.
    """
    wanted, places = torch.unique(ids, return_inverse=True)
    count = weight.shape[0]
    if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < count:
        raise IndexError(f"token ids {int(wanted[0])} to {int(wanted[-1])}: the table has {count}")
    return weight.rows(wanted, torch_dtypes()[weight.dtype])[places]
