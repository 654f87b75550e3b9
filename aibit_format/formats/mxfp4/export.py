"""Writes gpt-oss' experts. See ``source`` for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ...schemes.microscaling import MXFP4
from ..huggingface.forms import Form, NotHeldError, Part, Stored

_BYTES, _COLUMNS = 16, 32  # of a block


class MXFP4Form(Form):
    """Write fused experts, which are stored as the transposes of the model's."""

    name: ClassVar[str] = "mxfp4"
    METHODS = ("mxfp4",)
    PLACES = frozenset({"transposed experts"})

    @property
    def fused(self) -> bool:
        return True

    def settings(self, stored: Stored) -> str:
        if not isinstance(stored.scheme, MXFP4) or len(stored.shape) != 3 or stored.shape[-1] % _COLUMNS:
            raise NotHeldError(f"mxfp4 has experts in whole blocks of {_COLUMNS} columns alone")
        return "experts"

    def parts(self, stored: Stored) -> dict[str, Part]:
        experts, rows, columns = stored.shape
        blocks = (experts, rows, columns // _COLUMNS)
        return {
            "_blocks": Part("u8", (*blocks, _BYTES), lambda planes: planes["codes"]),
            "_scales": Part("u8", blocks, lambda planes: planes["scale"]),
        }

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        # Only experts have layers of this method; a source that lists fewer of the other modules is right, too.
        return {"quant_method": "mxfp4", **self.said, **self.lists(kept, () if self.said else skipped)}
