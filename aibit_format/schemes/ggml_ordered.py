"""Implements version 2 of the ``gguf:`` schemes: blocks whose columns are in another order than the tensor's.

``blocks`` are those of version 1, as a GGUF file has them, and ``column_order`` i32 [K] is a permutation: column j of
the tensor is column ``column_order[j]`` of the decoded blocks. So a model whose columns llama.cpp has moved, by fewer
than a block at a time, keeps its blocks. A product moves its input instead: ``W @ x`` is the product of the blocks with
the vector whose element ``column_order[j]`` is ``x[j]``.

Bits per weight are those of version 1, and 32 / N more for N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import SchemeError
from .base import Planes, PlaneSpec, Rows, Scheme
from .ggml import GGML


@dataclass(frozen=True)
class GGMLOrdered(Scheme):
    """Store ``blocks``, and ``column_order`` i32 [K], the same for all rows."""

    name: str  # type: ignore[misc]  # one class serves all of them, so here the name belongs to the instance
    version: ClassVar[int] = 2
    is_numbered: ClassVar[bool] = True

    @property
    def unordered(self) -> GGML:
        return GGML(self.name)

    def planes(self, shape: tuple[int, ...], dtype: str) -> tuple[PlaneSpec, ...]:
        return *self.unordered.planes(shape, dtype), PlaneSpec("column_order", "i32", shape[-1:])

    def encode(self, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        raise SchemeError(f"{self.text}: the order of columns comes with a checkpoint; encode with {self.name}")

    def decode_rows(self, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> np.ndarray:
        return self.unordered.decode_rows(planes, shape, dtype, rows).take(planes["column_order"], axis=1)

    def bad_values(self, planes: Planes) -> Iterator[tuple[str, str]]:
        order = planes["column_order"]
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            yield "column_order", f"not each column from 0 to {len(order) - 1} once"

    def bad_codes(self, planes: Planes, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        return self.unordered.bad_codes(planes, shape)
