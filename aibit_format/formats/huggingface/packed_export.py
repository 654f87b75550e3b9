"""Writes what GPTQ's and AWQ's checkpoints have in common: codes and zero points in words of 32 bits, and scales.

See ``packed_int4`` for the way in.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...dtypes import from_float32, to_float32
from ...schemes.int4_group import GROUP_SIZES
from .forms import Form, NotHeldError, Part, Planes, Stored
from .integers import Integers, integers_of

_SCALES = ("f16", "bf16", "f32")


@dataclass(frozen=True, slots=True)
class Settings:
    """Hold what is equal for all weights of a checkpoint."""

    bits: int
    group: int
    symmetric: bool

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "with zero points"
        return f"{self.bits} bits, {kind}, in groups of {self.group or 'a row'}"


class PackedForm(Form):
    """Write integers in groups; a subclass lays out the words."""

    WIDTHS: ClassVar[tuple[int, ...]]
    ORDERED: ClassVar[bool]  # whether columns may be in another order than their groups

    def settings(self, stored: Stored) -> Settings:
        found = integers_of(stored.scheme)
        if found is None or found.bits not in self.WIDTHS or found.zero not in ("none", "code") or found.scale != "f16":
            widths = " or ".join(map(str, self.WIDTHS))
            raise NotHeldError(f"{self.name} has integers of {widths} bits with scales f16 alone")
        rows, columns = stored.shape[-2:]
        whole = 32 // math.gcd(32, found.bits)
        if len(stored.shape) != 2 or rows % whole or columns % whole or not rows * columns:
            raise NotHeldError(f"{self.name} has matrices in multiples of {whole} alone, not {list(stored.shape)}")
        if found.group not in GROUP_SIZES:
            raise NotHeldError(f"{self.name} has no groups of {found.group}")
        if found.ordered and not self.ORDERED:
            raise NotHeldError(f"{self.name} has no order of columns")
        return Settings(found.bits, found.group, found.zero == "none")

    def parts(self, stored: Stored) -> dict[str, Part]:
        found = integers_of(stored.scheme)
        if found is None:
            raise self.error(stored, f"is {stored.scheme.text}")
        rows, columns = stored.shape
        groups = -(-columns // (found.group or columns))
        scales = self.origin.part(".scales", _SCALES)
        dtype = scales[0] if scales else "f16"
        return self.words(stored, found, groups) | {
            ".scales": Part(dtype, (groups, rows), lambda planes: self._scales(stored, planes, dtype))
        }

    @abstractmethod
    def words(self, stored: Stored, found: Integers, groups: int) -> dict[str, Part]:
        """Return the parts with codes and zero points, and the order of columns if there is one."""

    def zeros(self, stored: Stored, found: Integers, planes: Planes, least: int = 0) -> np.ndarray:
        """Return the zero points of groups less ``least``, u8 [G, N].

        Raises:
            WriteError: one does not fit into the bits of a code.
        """
        if found.zero == "none":
            zeros = np.full(planes["scale"].shape, 1 << (found.bits - 1), np.uint8)
        else:
            zeros = planes["zero_point"]
        most = (1 << found.bits) - 1 + least
        if zeros.size and (zeros.min() < least or zeros.max() > most):
            raise self.error(stored, f"has zero points {zeros.min()} to {zeros.max()}, and {self.name} with "
                             f"{found.bits} bits holds {least} to {most}")  # fmt: skip
        return np.ascontiguousarray(zeros.T) - np.uint8(least)

    def _scales(self, stored: Stored, planes: Planes, dtype: str) -> np.ndarray:
        scales = planes["scale"].T
        if dtype == "f16":
            return scales
        found = from_float32(to_float32(np.ascontiguousarray(scales), "f16"), dtype)
        if not np.array_equal(to_float32(found, dtype), to_float32(scales, "f16")):
            raise self.error(stored, f"has scales that {dtype}, the dtype of the source's, does not hold")
        return found
