"""Describes what GPTQ needs of a scheme: parameters for some columns, and planes of codes that are found later.

All schemes that are rounded so have codes from 0 up, with parameters for each group of columns of a row::

    value = (code - zero) * scale + offset        or, with a codebook,  book[code] * scale + offset

GPTQ changes the values of a column before it reaches it, so parameters of a group are found when its first column is
reached. The capability ``quantizer`` makes one; the names are those of the code of Frantar et al., GPTQ, 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Quantizer(Protocol):
    """Quantize rows of a scheme, given codes."""

    @property
    def span(self) -> int:
        """Return for how many columns parameters are found at a time; the last ones of a row may be fewer."""
        ...

    @property
    def group(self) -> int:
        """Return how many columns of a span share a scale."""
        ...

    @property
    def high(self) -> int:
        """Return the greatest code."""
        ...

    @property
    def book(self) -> np.ndarray | None:
        """Return 15 bounds and the 16 ascending values that codes stand for, f32 [31]; ``None``: for themselves."""
        ...

    def find(self, values: np.ndarray, weights: np.ndarray, /) -> Any:
        """Find the parameters of a span that make the weighted squared error of rounding small.

        Args:
            values: f32 [rows, columns].
            weights: f32 [columns]; a weight may be 0.

        Raises:
            SchemeError: a value is not finite, or a scale is too large for the scheme.
        """
        ...

    def parameters(self, found: Any, /) -> np.ndarray:
        """Return scales, zeros and offsets of the groups of a span, f32 [3, groups, rows]."""
        ...

    def planes(self, codes: np.ndarray, found: Sequence[Any], /) -> dict[str, np.ndarray]:
        """Return the planes of rows, of which ``found`` are the spans.

        Args:
            codes: u8 [rows, columns].
        """
        ...
