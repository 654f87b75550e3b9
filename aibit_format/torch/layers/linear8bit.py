"""Computes LLM.int8 on a CPU: bitsandbytes' arithmetic, bit for bit, in fewer and shorter operations.

bitsandbytes' layer spends more time around its product than in it: an autograd function, four custom operations that
dispatch again, maxima that torch does not vectorize, a full temporary for every step; and on processors without AVX512
a float32 copy of the whole weight. Here the same float operations are done in the same order, in pieces that stay in
cache. The product of whole numbers is exact in whatever way it is made, as long as its sums stay below 2^24, where
float32 begins to round: with k columns they are below 127^2 k, and in practice, with signs that differ, far below.

See Dettmers et al., LLM.int8(), 2022, and bitsandbytes 0.50, ``backends/default/ops.py`` and ``backends/cpu/ops.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from ... import native
from ...interop import to_numpy
from .. import bnb_compat
from ..kernels import matmul
from ..kernels.openmp import threads
from .fused import FusedRows, fused_product, split

_PIECE_ELEMENTS = 1 << 18  # sums scaled at a time
# bitsandbytes' own roundings of 1 / 127 and of its square.
_OF_CODE, _OF_PRODUCT = 7.874015718698502e-3, 6.200124e-05
# bitsandbytes asks the same: without AVX512 torch's product of 8-bit integers is slower than one of floats.
_INTEGERS = torch.backends.cpu.get_cpu_capability() == "AVX512"
# The compiled product is for processors where torch multiplies floats instead.
COMPILED = matmul.COMPILED and not _INTEGERS
# Of the input, where floats are multiplied: for more, bitsandbytes' one product with a float32 copy of the weight is
# faster (1,024 rows: 0.9 of the time; 128 rows: 1.7 times).
_MANY_ROWS = 512


class Linear8bitLt(bnb_compat.Linear8bitLt):
    """Replaces ``bnb.nn.Linear8bitLt``: on a CPU, in eval mode and without gradients, its outputs are computed here."""

    fused: FusedRows | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x [..., in_features]: [..., out_features], in the dtype of x."""
        if (
            self.training
            or x.device.type != "cpu"
            or not x.numel()
            or matmul.elsewhere(x, self.bias)
            or bnb_compat.int8_state(self) is None
        ):
            return super().forward(x)
        if not _INTEGERS and not COMPILED and x.numel() > _MANY_ROWS * x.shape[-1]:
            return super().forward(x)
        return fused_product(self, x)

    def _load_from_state_dict(self, *args: Any) -> None:
        bnb_compat.int8_state_to_parameter(self)
        super()._load_from_state_dict(*args)

    @property
    def text(self) -> str:
        """Return the scheme of the weight, as users write it."""
        return "int8"

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes i8 [out, in], and the largest magnitude of each row f32 [out]."""
        found = bnb_compat.int8_state(self)
        if found is None:
            raise RuntimeError("the layer has no int8 codes")
        return found

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply x [rows, in] with these rows of codes: for each size, [rows, size] in the dtype of x."""
        threshold = self.state.threshold
        if COMPILED and (found := _product(x, threshold, codes, scales, bias)) is not None:
            return split(found, sizes)
        return Inputs.of(x, threshold).times(codes, scales, bias, x, sizes)


def _product(
    x: torch.Tensor, threshold: float, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """Multiply in one compiled call: [rows, out] in the dtype of x; None if there are columns to keep aside."""
    values, dtype = to_numpy(x)
    out = torch.empty(len(x), len(codes), dtype=x.dtype)
    fine = native.int8_linear(
        values, dtype, threshold if threshold > 0 else math.inf, codes.numpy(), absmax.numpy(), _OF_PRODUCT,
        _bias(bias, x.dtype), to_numpy(out)[0], *threads(),
    )  # fmt: skip
    return out if fine else None


def _bias(bias: torch.Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
    """Return a bias rounded to ``dtype``, in float32."""
    return None if bias is None else bias.detach().to(dtype).float().numpy()


@dataclass(slots=True)
class Inputs:
    """Holds inputs in 8 bits: codes, the largest magnitude of each row f32 [rows], and columns kept aside."""

    codes: torch.Tensor  # i8 [rows, in]
    absmax: torch.Tensor
    outliers: torch.Tensor | None  # i64, columns with a magnitude of the threshold or more; None: there are none

    @classmethod
    def of(cls, x: torch.Tensor, threshold: float) -> Inputs:
        """Quantize x [rows, in] as ``int8_vectorwise_quant`` does."""
        values, columns = x.to(torch.float16).float(), None
        absmax = values.abs().amax(1)
        if threshold > 0 and not float(absmax.max()) < threshold:
            outliers = values.abs() >= threshold
            columns = torch.argwhere(outliers.any(dim=0)).view(-1)
            values = values.masked_fill(outliers, 0)
            absmax = values.abs().amax(1)
        codes = (values * (127.0 / absmax)[:, None]).round_().to(torch.int8)
        if columns is not None and len(codes) > 1:
            codes[:, columns] = 0
        return cls(codes, absmax, columns if columns is not None and len(columns) else None)

    def times(
        self, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply with a weight, or with several that lie side by side, as ``int8_mixed_scaled_mm`` does.

        Args:
            codes, absmax: i8 [out, in] and f32 [out].
            x: what was quantized, [rows, in].
            sizes: the part of ``out`` of each weight.

        Returns:
            [rows, size] in the dtype of x, for each weight.
        """
        scaled = self._scaled if COMPILED else self._scaled_by_torch
        results = scaled(codes, absmax, bias, x, sizes)
        if self.outliers is not None:
            aside = x[:, self.outliers].contiguous()
            columns = (codes[:, self.outliers] * absmax.view(-1, 1) * _OF_CODE).to(x.dtype).split(sizes)
            results = [result.addmm(aside, each.t()) for result, each in zip(results, columns, strict=True)]
        return results

    def _scaled(
        self, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply codes, scale the sums and add the bias: one tensor for each size."""
        wide, out = pad(self.codes.to(torch.int16), (0, -self.codes.shape[1] % 16)), x.new_empty(len(x), len(codes))
        values, dtype = to_numpy(out)
        native.int8_product(
            wide.numpy(), self.absmax.numpy(), codes.numpy(), absmax.numpy(), _OF_PRODUCT, _bias(bias, x.dtype),
            values, dtype, *threads(),
        )  # fmt: skip
        return split(out, sizes)

    def _scaled_by_torch(
        self, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, sizes: list[int]
    ) -> list[torch.Tensor]:
        sums = self._sums(codes)
        bias = None if bias is None else bias.to(x.dtype)
        results = [x.new_empty(len(sums), size) for size in sizes]
        step = max(1, _PIECE_ELEMENTS // max(len(codes), 1))
        for start in range(0, len(sums), step):
            part = slice(start, start + step)
            scaled = torch.outer(self.absmax[part], absmax)
            torch.mul(sums[part].float(), scaled, out=scaled).mul_(_OF_PRODUCT)
            if bias is not None:
                scaled += bias
            for result, values in zip(results, scaled.split(sizes, 1), strict=True):
                result[part] = values
        return results

    def _sums(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the sums of products of codes, whole numbers [rows, out] in i32 or f32."""
        if _INTEGERS:
            return torch.ops.aten._int_mm(self.codes, codes.t())
        return matmul.widened(self.codes.float(), codes)
