"""Sums up the inputs of one weight as they come, in float64 on the device they are on."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..errors import SourceError
from .statistics import PERCENTILES, Inputs

_BINS = 1 << 16  # one for each value of bf16


class Rows:
    """Hold the sums of some rows of inputs, x [tokens, K]: of layers with the same inputs they are computed once."""

    def __init__(self, x: torch.Tensor) -> None:
        self.count = len(x)
        exact = x.double()
        self.sum = exact.sum(0)
        self.sum2 = exact.square().sum(0)
        magnitudes = exact.abs_()
        self.magnitude = magnitudes.sum(0)
        self.largest = magnitudes.amax(0).float()
        self.low, self.high = (each.float() for each in x.aminmax())
        self.bins = torch.bincount(x.bfloat16().view(torch.int16).flatten().int() & 0xFFFF, minlength=_BINS)
        self._x = x
        self._hessian: torch.Tensor | None = None

    def hessian(self) -> torch.Tensor:
        """Return x^T x, f32 [K, K]."""
        if self._hessian is None:
            x = self._x.float()
            self._hessian = x.T @ x
        return self._hessian


class Sums:
    """Add up the sums of the inputs of one weight, of G experts by themselves, on ``device``.

    Args:
        name: of the weight, for errors.
        columns: K.
        groups: G; ``None`` for a weight that has no experts.
        hessian: whether to sum up x^T x, too: G * K * K float32.
        device: of the sums.
    """

    def __init__(
        self, name: str, columns: int, groups: int | None, hessian: bool, device: torch.device | str = "cpu"
    ) -> None:
        self._name, self._experts, count = name, groups is not None, groups or 1
        self._counts = [0] * count
        self._sums = torch.zeros(3, count, columns, dtype=torch.float64, device=device)
        self._largest = torch.zeros(count, columns, device=device)
        self._low = torch.full((count,), math.inf, device=device)
        self._high = torch.full((count,), -math.inf, device=device)
        self._bins = torch.zeros(_BINS, dtype=torch.int64, device=device)
        self._hessian = torch.zeros(count, columns, columns, device=device) if hessian else None
        self._routed = torch.zeros(count, dtype=torch.float64, device=device) if groups is not None else None

    def route(self, experts: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the weights that a router gives to the outputs of experts, both [..., k]."""
        if self._routed is not None:
            self._routed.index_add_(0, experts.reshape(-1), weights.reshape(-1).double())

    def add(self, rows: Rows, group: int = 0) -> None:
        """Add rows of inputs, those of one expert."""
        self._counts[group] += rows.count
        for place, each in enumerate((rows.sum, rows.sum2, rows.magnitude)):
            self._sums[place, group] += each
        torch.maximum(self._largest[group], rows.largest, out=self._largest[group])
        torch.minimum(self._low[group], rows.low, out=self._low[group])
        torch.maximum(self._high[group], rows.high, out=self._high[group])
        self._bins += rows.bins
        if self._hessian is not None:
            self._hessian[group] += rows.hessian()

    def finished(self) -> Inputs:
        """Return the statistics.

        Raises:
            SourceError: an input was not finite.
        """
        if not bool(torch.isfinite(self._sums[1]).all()):
            raise SourceError(
                f"tensor {self._name!r}: an input of this layer is not finite (NaN, or too large for its dtype): the "
                "model does not compute on this text; try another dtype (--dtype float32)"
            )
        counts, sums = np.array(self._counts, np.int64), self._sums.cpu().numpy()
        seen = counts > 0
        low, high = (np.where(seen, each.cpu().numpy(), np.float32(0)) for each in (self._low, self._high))
        return Inputs(
            counts, sums[1], sums[0], sums[2], self._largest.cpu().numpy(), low, high,
            percentiles(self._bins.cpu().numpy()), self._symmetric(), self._experts,
            None if self._routed is None else self._routed.cpu().numpy(),
        )  # fmt: skip

    def _symmetric(self) -> np.ndarray | None:
        """Return the sum of x^T x with the upper triangle mirrored, which a product may round otherwise than the lower.

        Raises:
            SourceError: it is beyond float32's range.
        """
        if self._hessian is None:
            return None
        if not bool(torch.isfinite(self._hessian.diagonal(dim1=1, dim2=2)).all()):
            raise SourceError(f"tensor {self._name!r}: inputs of this layer are too large for a Hessian in float32")
        upper = self._hessian.triu()
        return (upper + upper.triu(1).mT).cpu().numpy()


def percentiles(bins: np.ndarray) -> np.ndarray:
    """Return the percentiles of values that are counted by the bits of bf16, i64 [65536]; zeros if there are none."""
    order = np.concatenate([np.arange(0xFFFF, 0x7FFF, -1), np.arange(0x8000)])  # from the lowest to the highest
    reached = np.cumsum(bins[order])
    total = int(reached[-1])
    if not total:
        return np.zeros(len(PERCENTILES), np.float32)
    ranks = [max(math.ceil(share * total), 1) for share in PERCENTILES]
    found = order[np.searchsorted(reached, ranks)]
    return (found.astype(np.uint32) << 16).view(np.float32)
