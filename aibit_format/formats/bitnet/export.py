"""Writes checkpoints of BitNet. See ``source`` for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...schemes.packing import unpack
from ...schemes.ternary import Ternary
from ..huggingface.forms import Form, NotHeldError, Part, Planes, Stored
from .source import IN_BYTE, RECIPROCAL

_LAYERS = {number: layer for layer, number in RECIPROCAL.items()}


class BitNetForm(Form):
    """Write weights of -1, 0 and 1 with one scale."""

    name: ClassVar[str] = "bitnet"
    METHODS = ("bitnet",)

    def settings(self, stored: Stored) -> str:
        scheme = stored.scheme
        if not isinstance(scheme, Ternary) or len(stored.shape) != 2 or stored.shape[0] % IN_BYTE:
            raise NotHeldError(f"bitnet has ternary weights of a multiple of {IN_BYTE} rows alone")
        return _LAYERS[scheme.reciprocal]

    def parts(self, stored: Stored) -> dict[str, Part]:
        rows, columns = stored.shape
        dtype = stored.scheme.whole["scale"] if isinstance(stored.scheme, Ternary) else "f32"

        def packed(planes: Planes) -> np.ndarray:
            codes = unpack(planes["codes"], 2, columns, "little").reshape(IN_BYTE, rows // IN_BYTE, columns)
            return np.bitwise_or.reduce([each << np.uint8(2 * place) for place, each in enumerate(codes)])

        return {
            ".weight": Part("u8", (rows // IN_BYTE, columns), packed),
            ".weight_scale": self.floats(".weight_scale", "scale", dtype, (1,)),
        }

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        defaults = {"quant_method": "bitnet", "quantization_mode": "offline", "linear_class": self.settings(kept[0])}
        said = {**(self.said or defaults), **self.lists(kept, skipped)}
        if said.get("linear_class", "bitlinear") != defaults["linear_class"]:
            said["linear_class"] = defaults["linear_class"]
        return said
