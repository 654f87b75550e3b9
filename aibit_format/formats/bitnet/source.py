"""Reads checkpoints of BitNet: weights -1, 0 and 1 with one scale.

    weight        u8 [N / 4, K]: two bits a code, which is the value plus 1; the codes of byte [i, k] are those of rows
                  i, i + N / 4, i + 2 N / 4 and i + 3 N / 4, from the lowest bits
    weight_scale  bf16, f16 or f32 [1]: ``BitLinear`` divides by it, ``AutoBitLinear`` multiplies

See ``unpack_weights`` in ``transformers.integrations.bitnet``. The layers quantize their inputs to 8 bits, which is no
part of the weights. Checkpoints in "online" mode have plain weights.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..huggingface.modules import CODES, Parts, Planes, QuantizedModules, Weight, plane_of

IN_BYTE = 4
RECIPROCAL = {"bitlinear": 1, "autobitlinear": 0}


class BitNet(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "bitnet"."""

    kind: ClassVar[str] = "bitnet"
    CODE_DTYPES = ("u8",)
    SUFFIXES = {".weight_scale": "scale"}

    def prepare(self) -> None:
        mode = self.said.get("quantization_mode", "offline")
        if mode != "offline":
            raise self.refused(
                f"quantization_mode {mode!r}: its weights are plain values, to be rounded as they are used"
            )
        if self.said.get("use_rms_norm"):
            raise self.refused("use_rms_norm: norms before each layer, which no model of transformers has by itself")
        self._reciprocal = RECIPROCAL[self.choice("linear_class", RECIPROCAL, "bitlinear")]
        self.check_listed("modules_to_not_convert")

    def weight(self, name: str, parts: Parts) -> Weight:
        codes, scale = self.part(name, parts, CODES, ("u8",)), self.part(name, parts, "scale", ("bf16", "f16", "f32"))
        if scale.shape not in ((), (1,)):
            raise self.error(scale, f"has shape {list(scale.shape)}, expected one number")
        if len(codes.shape) != 2:
            raise self.error(codes, f"has shape {list(codes.shape)}, expected rows and columns")
        rows, columns = codes.shape

        def read() -> Planes:
            packed = self.value(codes)
            unpacked = np.stack([(packed >> np.uint8(2 * place)) & np.uint8(3) for place in range(IN_BYTE)])
            if (unpacked == 3).any():
                raise self.error(codes, "holds a code 3, which stands for no value of -1, 0 and 1")
            ternary = unpacked.reshape(IN_BYTE * rows, columns)
            return {CODES: plane_of(ternary, 2, "u2"), "scale": self.value(scale).reshape(1)}

        return Weight((IN_BYTE * rows, columns), f"ternary,scale={scale.dtype},reciprocal={self._reciprocal}", read)
