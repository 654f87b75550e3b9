"""Writes AWQ checkpoints in the version "gemm". See ``awq`` for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .awq import ORDER
from .forms import NotHeldError, Part, Stored
from .integers import Integers, codes
from .packed_export import PackedForm, Settings
from .packed_int4 import BITS, CODES


class AWQForm(PackedForm):
    """Write integers of 4 bits in groups."""

    name: ClassVar[str] = "awq"
    METHODS = ("awq",)
    PLACES = frozenset({"linear", "experts"})
    WIDTHS = (BITS,)
    ORDERED = False

    def settings(self, stored: Stored) -> Settings:
        found = super().settings(stored)
        if found.group and stored.shape[1] % found.group:
            raise NotHeldError(f"awq has whole groups of {found.group} columns alone, not {list(stored.shape)}")
        return found

    def words(self, stored: Stored, found: Integers, groups: int) -> dict[str, Part]:
        rows, columns = stored.shape
        return {
            ".qweight": Part("i32", (columns, rows // CODES), lambda planes: _words(
                codes(stored.scheme, planes, columns))),
            ".qzeros": Part("i32", (groups, rows // CODES), lambda planes: _words(
                np.ascontiguousarray(self.zeros(stored, found, planes).T))),
        }  # fmt: skip

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        settings = self.settings(kept[0])
        defaults = {"quant_method": "awq", "version": "gemm"}
        said = {
            **defaults, **self.said, "bits": settings.bits, "group_size": settings.group or -1,
            "zero_point": not settings.symmetric, **self.lists(kept, skipped),
        }  # fmt: skip
        if "sym" in said:  # AutoRound's word
            said["sym"] = settings.symmetric
        return said


def _words(numbers: np.ndarray) -> np.ndarray:
    """Pack u8 [R, C] of four bits to words i32 [C, R / 8]: each has the numbers of eight rows, in AWQ's order."""
    eights = numbers.reshape(-1, CODES, numbers.shape[1])
    found = np.zeros((len(eights), numbers.shape[1]), np.uint32)
    for nibble, row in enumerate(ORDER):
        found |= eights[:, row].astype(np.uint32) << np.uint32(BITS * nibble)
    return np.ascontiguousarray(found.T).view("<i4")
