"""Defines the Linear layer that rounds its inputs to 8 bits, for the schemes ``int8-dynamic`` and ``int8-static``.

Planes stay as they are, on a CPU the mapped pages. What is computed with them is in ``kernels.w8a8``.
"""

from __future__ import annotations

from typing import Any

import torch

from ...schemes.w8a8 import INPUT_ZERO_POINT
from ..kernels import functional, w8a8
from .dequantized import QuantizedLinear
from .fused import fused_product, split


class _RowSums:
    """Keeps the sums of a weight's rows of codes, for as long as the codes are in the same place."""

    __slots__ = ("address", "sums")

    def __init__(self) -> None:
        self.address: tuple[int, torch.device] | None = None
        self.sums: torch.Tensor | None = None

    def of(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the sums of codes i8 [out, in], i32 [out]."""
        address = codes.data_ptr(), codes.device
        if self.sums is None or self.address != address:
            self.address, self.sums = address, w8a8.code_sums(codes)
        return self.sums

    def __reduce__(self) -> Any:
        """Leave all out of copies, which have planes of their own."""
        return _RowSums, ()


class W8A8Linear(QuantizedLinear):
    """Does what ``nn.Linear`` does with inputs in 8 bits; see ``spec/schemes/w8a8.md``.

    The sums that a zero point of inputs is multiplied with are computed at the first use, and not before: loading
    touches no page of the weight.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._row_sums = _RowSums()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x [..., in_features] with the weight: [..., out_features], in the dtype of x."""
        flat, bias = x.reshape(-1, self.in_features), self.bias
        if torch.compiler.is_compiling() and not functional.learns(flat, bias):
            from . import custom_ops  # registering operators takes time that only a compiler is worth

            values = custom_ops.w8a8_linear(flat, *self._arguments(), bias)
        elif self.fused is not None and flat.numel() and not functional.learns(flat, bias):
            return fused_product(self, x)
        else:
            sums = None
            if INPUT_ZERO_POINT in self._roles and not (w8a8.COMPILED or torch.compiler.is_compiling()):
                sums = self._row_sums.of(self.get_buffer("codes"))
            values = w8a8.linear(flat, self.stored(), bias, sums)
        return values.view(*x.shape[:-1], self.out_features)

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply x [rows, in], each row by its own scale, with codes: for each size, [rows, size] in its dtype."""
        return split(w8a8.product(x, {"codes": codes, "scale": scales}, bias), sizes)
