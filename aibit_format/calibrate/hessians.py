"""Provides Hessians that follow from others, computed when they are asked for, so that few are in memory at a time.

Statistics of a model hold a matrix [K, K] for the inputs of each weight, mostly in a mapped file. What a transformation
makes of them is as large again, and is needed one weight after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Hessians(Protocol):
    """Provide the sums of x^T x of G experts (or of one matrix): an array f32 [G, K, K], or what stands for one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return G, K, K."""
        ...

    def __getitem__(self, which: int, /) -> Any:
        """Return the matrix number ``which``, f32 [K, K]."""
        ...


class Derived:
    """Provide the Hessians of changed inputs.

    Args:
        before: those of the inputs as they were.
        change: returns a changed matrix [K, K] for one of ``before`` and its number.
    """

    def __init__(self, before: Hessians, change: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self.shape = before.shape
        self._before, self._change = before, change

    def __getitem__(self, which: int, /) -> np.ndarray:
        if not 0 <= which < self.shape[0]:
            raise IndexError(which)  # ends an iteration, too
        return self._change(self._before[which], which).astype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([self[which] for which in range(self.shape[0])]).astype(dtype or np.float32)


class Derivation:
    """Derive Hessians; weights that shared one before share one afterwards, which is factorized once then."""

    def __init__(self, change: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self._change = change
        self._made: dict[int, tuple[Hessians, Derived]] = {}

    def of(self, before: Hessians | None) -> Derived | None:
        """Return what follows from Hessians, or from none."""
        if before is None:
            return None
        return self._made.setdefault(id(before), (before, Derived(before, self._change)))[1]
