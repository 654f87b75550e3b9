"""Modules for schemes that no library has a layer for: planes stay as they are, and are decoded piece by piece.

A forward decodes some rows of the weight, multiplies, and forgets them; the whole weight never exists in the model's
dtype. On a CPU the planes are the mapped pages.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from ...interop import torch_dtypes
from ...schemes import Scheme
from ...schemes.base import ROW
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Int8Absmax
from ..kernels.decode import decode_rows
from ..kernels.matmul import IN_FLOAT32, has_kernel, times_codes
from .fused import Joined, parts, product

_PIECE = 1 << 21  # elements decoded at a time, so that they stay in a CPU's cache
_PIECE_ELSEWHERE = 1 << 24  # on other devices, where each piece is several launches


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
        self._text = scheme.text  # a compiler cannot ask for it

    def planes(self) -> dict[str, torch.Tensor]:
        """The planes by role."""
        return {role: self.get_buffer(role) for role in self._roles}

    def _parts(self) -> tuple[list[torch.Tensor], str, str, list[int], str]:
        """What an operator makes the module of again."""
        planes = [*self.planes().values()]
        return planes, " ".join(self._roles), self._text, list(self.shape), self.logical_dtype

    def rows(self, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Values of these rows, [rows, columns] in ``dtype``, on the planes' device."""
        if torch.compiler.is_compiling() and isinstance(rows, slice):
            from . import custom_ops  # wanted by a compiler alone

            return custom_ops.rows(*self._parts(), rows.start, rows.stop).to(dtype)
        return decode_rows(self.scheme, self.planes(), self.shape, self.logical_dtype, rows).to(dtype)

    @property
    def weight(self) -> torch.Tensor:
        """All values, in the logical dtype: made anew each time it is asked for."""
        return self.rows(slice(0, self.shape[0]), torch_dtypes()[self.logical_dtype])

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, scheme={self.scheme.text}"


class QuantizedLinear(Quantized):
    """``nn.Linear`` over a weight in any scheme; products are in the input's dtype."""

    joined: Joined | None = None

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
        self._scales = _row_scales(scheme)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, self.in_features)
        if torch.compiler.is_compiling() and not self._learns(flat):
            return self._traced(x, flat).view(*x.shape[:-1], self.out_features)
        if self._takes(flat):
            return product(self, x)
        values = self._by_pieces(flat)
        if self.bias is not None:
            values = values + self.bias.to(values.dtype)
        return values.view(*x.shape[:-1], self.out_features)

    def _traced(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """[rows, out] of x, which is ``flat`` [rows, in] in its own shape, as an operator that a compiler sees."""
        from . import custom_ops  # wanted by a compiler alone

        found = None if self.joined is None else self.joined.traced(self, x, flat)
        return custom_ops.linear(flat, *self._parts(), self.bias) if found is None else found

    def _takes(self, x: torch.Tensor) -> bool:
        """Whether codes are multiplied as they are, and scaled afterwards.

        On a CPU int8 is only here when that was asked for; with other schemes it must not lose what the inputs have.
        """
        if self._scales is None or x.requires_grad:
            return False
        if x.device.type == "cpu":
            return IN_FLOAT32 or x.dtype == torch.bfloat16 or isinstance(self.scheme, Int8)
        return has_kernel(x) and not self._learns(x)

    def _learns(self, x: torch.Tensor) -> bool:
        """Whether gradients are wanted."""
        return torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad))

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes i8 [out, in] and the plane of their scales f32 [out]."""
        if self._scales is None:
            raise TypeError(f"{self.scheme.text} has no scale a row")
        return self._buffers["codes"], self._buffers[self._scales[0]].view(-1)  # type: ignore[return-value, union-attr]

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """x [rows, in] times codes, scaled in float32: of each size, [rows, size] in the dtype of x."""
        factor = 1.0 if self._scales is None else self._scales[1]
        if has_kernel(x):
            from ..kernels.triton_int8 import small_product

            return parts(small_product(x, codes, scales, factor, bias).to(x.dtype), sizes)
        return parts(times_codes(x, codes, scales, factor, bias), sizes)

    def _by_pieces(self, x: torch.Tensor) -> torch.Tensor:
        step = max(1, (_PIECE if x.device.type == "cpu" else _PIECE_ELSEWHERE) // max(self.in_features, 1))
        if x.requires_grad:
            return torch.cat([linear(x, self._piece(i, step, x.dtype)) for i in range(0, self.out_features, step)], 1)
        product = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            torch.mm(x, self._piece(start, step, x.dtype).T, out=product[:, start : start + step])
        return product

    def _piece(self, start: int, step: int, dtype: torch.dtype) -> torch.Tensor:
        return self.rows(slice(start, min(start + step, self.out_features)), dtype)


def _row_scales(scheme: Scheme) -> tuple[str, float] | None:
    """The plane of 8-bit codes' scales, one for each row, and what they are to be multiplied by; None without such."""
    if isinstance(scheme, Int8):
        return "row_absmax", float(np.float32(1 / 127))
    return ("scale", 1.0) if isinstance(scheme, Int8Absmax) and scheme.group == ROW else None


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
        if torch.compiler.is_compiling():
            from . import custom_ops  # wanted by a compiler alone

            found = custom_ops.embedding(ids.reshape(-1), *self._parts())
            return found.view(*ids.shape, self.embedding_dim)
        wanted, places = torch.unique(ids, return_inverse=True)
        if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < self.num_embeddings:
            raise IndexError(f"token ids {int(wanted[0])} to {int(wanted[-1])}: the table has {self.num_embeddings}")
        values = self.rows(wanted, torch_dtypes()[self.logical_dtype])
        return values[places]
