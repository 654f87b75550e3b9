"""Defines modules for schemes that no library has a layer for: planes stay as they are, decoded piece by piece.

On a CPU the planes are the mapped pages. What is computed with them is in ``kernels.functional``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from ...interop import dtype_name, torch_dtypes
from ...schemes import Scheme
from ..kernels import functional
from ..kernels.functional import ORDER, Weight
from ..kernels.matmul import RowProduct
from ..kernels.packed import PackedProduct, PackedWeight
from .fused import FusedRows, fused_product, split

_BUFFERS = {"bias": "biases"}  # role -> name, where a layer has something else of the role's name


class Quantized(nn.Module):
    """Holds a weight in a scheme: its planes as buffers, and its values a few rows at a time.

    Args:
        scheme: how the weight is stored.
        planes: its planes by role, on one device.
        shape: [rows, columns] of the stored weight; of a stack of them, with their number before.
        dtype: the logical dtype, a name of ``aibit_format.dtypes``. Casting the module changes it, and no plane.

    ``leaf`` is the name of the weight below the module, and ``transposed`` says that the model has its transpose there.
    ``activations`` says to what a compiled product rounds inputs; see ``kernels.packed``. None: by their dtype.
    """

    leaf = "weight"
    transposed = False
    activations: str | None = None

    def __init__(self, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, ...], dtype: str) -> None:
        super().__init__()
        self.scheme, self.shape, self.logical_dtype = scheme, shape, dtype
        self._roles = tuple(planes)
        for role, plane in planes.items():
            self.register_buffer(_BUFFERS.get(role, role), plane)
        self._text = scheme.text  # a compiler cannot ask for it

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move planes as bytes, whose dtype no cast changes; the dtype of what is computed from them follows the cast.

        A scale or a codebook rounded to another dtype would give other values.
        """
        planes = {id(plane): plane for plane in self.planes().values()}
        super()._apply(lambda each: _moved(each, fn) if id(each) in planes else fn(each), recurse)
        device = next(iter(planes.values())).device
        cast = fn(torch.empty(0, dtype=torch_dtypes()[self.logical_dtype], device=device)).dtype
        if cast.is_floating_point:
            self.logical_dtype = dtype_name(cast)
        return self

    def planes(self) -> dict[str, torch.Tensor]:
        """Return the planes by role."""
        return {role: self.get_buffer(_BUFFERS.get(role, role)) for role in self._roles}

    def stored(self) -> Weight:
        """Return the weight as the functions that compute with it take it."""
        return Weight.of(self.scheme, self.planes(), self.shape, self.logical_dtype)

    def _arguments(self) -> tuple[list[torch.Tensor], str, str, list[int], str]:
        """Return the weight as an operator takes it: tensors, strings and numbers."""
        planes = [*self.planes().values()]
        return planes, " ".join(self._roles), self._text, list(self.shape), self.logical_dtype

    def rows(self, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Decode rows to [rows, columns] in ``dtype``, on the planes' device."""
        if torch.compiler.is_compiling() and isinstance(rows, slice):
            from . import custom_ops  # registering operators takes time that only a compiler is worth

            return custom_ops.rows(*self._arguments(), rows.start, rows.stop).to(dtype)
        return self.stored().rows(rows, dtype)

    @property
    def weight(self) -> torch.Tensor:
        """Decode all values, to the logical dtype, anew at each call."""
        return self.rows(slice(0, self.shape[0]), torch_dtypes()[self.logical_dtype])

    def extra_repr(self) -> str:
        """Return sizes and scheme, as ``repr`` of the module shows them."""
        return f"{', '.join(map(str, self.shape[::-1]))}, scheme={self.scheme.text}"


def _moved(plane: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply what moves or casts a tensor to a plane; its dtype stays."""
    data = plane.reshape(-1).view(torch.uint8)
    moved = fn(data)
    if moved is data:
        return plane
    if moved.dtype != torch.uint8:  # ``Module.type`` casts integers too
        return plane.to(moved.device)
    return moved.view(plane.dtype).view(plane.shape)


class _Packed:
    """Keeps a weight as a compiled product takes it, for as long as the layer's planes are the same tensors."""

    __slots__ = ("addresses", "weight")

    def __init__(self) -> None:
        self.addresses: list[int] | None = None
        self.weight: PackedWeight | None = None

    def __reduce__(self) -> Any:
        """Leave all out of copies, which have planes of their own."""
        return _Packed, ()


class QuantizedLinear(Quantized):
    """Does what ``nn.Linear`` does, over a weight in any scheme; products are in the input's dtype."""

    fused: FusedRows | None = None

    def __init__(
        self,
        scheme: Scheme,
        planes: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        dtype: str,
        bias: torch.Tensor | None = None,
    ) -> None:
        super().__init__(scheme, planes, shape, dtype)
        self.out_features, self.in_features = shape
        self.bias = bias
        self._product = functional.row_product(scheme.unordered)
        self._packed = _Packed()
        self._names = [_BUFFERS.get(role, role) for role in self._roles]

    @property
    def is_packed(self) -> bool:
        """Return whether a compiled product takes the weight as it is packed."""
        return isinstance(self._product, PackedProduct)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x [..., in_features] with the weight: [..., out_features]."""
        product, bias, compiling = self._product, self.bias, torch.compiler.is_compiling()
        packed = product if isinstance(product, PackedProduct) and not compiling else None
        order = self._buffers.get(ORDER)
        if packed is not None and functional.uses_codes(packed, x, bias):
            x = x if order is None else functional.in_stored_order(x, order)
            return packed.times(x, self._packed_weight(packed), bias, self.activations)
        flat = x.reshape(-1, self.in_features)
        if compiling and not functional.learns(flat, bias):
            return self._traced(x, flat).view(*x.shape[:-1], self.out_features)
        rows, shape = self.rows, (self.out_features, self.in_features)
        if order is not None and not compiling:
            flat, rows = functional.in_stored_order(flat, order), self.stored().unordered().rows
        if not isinstance(product, PackedProduct) and functional.uses_codes(product, flat, bias):
            return fused_product(self, x)
        if packed is not None and packed.decodes(flat.device, flat.dtype):
            rows = partial(packed.rows, self._packed_weight(packed))
        values = functional.by_pieces(flat, shape, rows)
        if self.bias is not None:
            values = values + self.bias.to(values.dtype)
        return values.view(*x.shape[:-1], self.out_features)

    def _packed_weight(self, product: PackedProduct) -> PackedWeight:
        """Return the weight as the compiled product takes it."""
        kept, buffers = self._packed, self._buffers
        # Not get_buffer, which takes longer than the rest of a call.
        addresses = [buffers[name].data_ptr() for name in self._names]  # type: ignore[union-attr]
        if kept.weight is None or kept.addresses != addresses:
            weight = product.format.weight(self.planes(), (self.out_features, self.in_features))
            kept.addresses, kept.weight = addresses, weight
        return kept.weight

    def _traced(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """Multiply x, which is ``flat`` [rows, in] in its own shape, by an operator that a compiler sees."""
        from . import custom_ops  # registering operators takes time that only a compiler is worth

        found = None if self.fused is None else self.fused.traced(self, x, flat)
        return custom_ops.linear(flat, *self._arguments(), self.bias) if found is None else found

    @property
    def text(self) -> str:
        """Return the scheme of the weight, as users write it."""
        return self._text

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes i8 [out, in] and the plane of their scales f32 [out]."""
        if not isinstance(self._product, RowProduct):
            raise TypeError(f"{self.scheme.text} has no scale a row")
        # Not get_buffer, which takes longer than the rest of the call.
        return self._buffers["codes"], self._buffers[self._product.scales].view(-1)  # type: ignore[return-value, union-attr]

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply x [rows, in] with codes, scaled in float32: for each size, [rows, size] in the dtype of x."""
        if not isinstance(self._product, RowProduct):
            raise TypeError(f"{self.scheme.text} has no scale a row")
        return split(self._product(x, codes, scales, bias), sizes)


class QuantizedEmbedding(Quantized):
    """Does what ``nn.Embedding`` does, over a table in any scheme: only the rows that are looked up are decoded.

    ``embed_scale`` is what they are multiplied by in the logical dtype, where a model has them scaled.
    """

    embed_scale: float | torch.Tensor | None

    def __init__(
        self, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: str,
        padding_idx: int | None = None, embed_scale: float | torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(scheme, planes, shape, dtype)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = padding_idx
        if isinstance(embed_scale, torch.Tensor):
            self.register_buffer("embed_scale", embed_scale, persistent=False)
        else:
            self.embed_scale = embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up ids [...]: [..., embedding_dim], in the logical dtype."""
        found = self._rows_of(ids)
        scale = self.embed_scale
        if scale is None:
            return found
        return found * (scale.to(found.dtype) if isinstance(scale, torch.Tensor) else scale)

    def _rows_of(self, ids: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            from . import custom_ops  # registering operators takes time that only a compiler is worth

            found = custom_ops.embedding(ids.reshape(-1), *self._arguments())
            return found.view(*ids.shape, self.embedding_dim)
        return functional.embedding(ids, self.stored())
