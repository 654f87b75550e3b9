"""Reads gpt-oss checkpoints: the weights of fused experts are MXFP4, all others plain values.

    X_blocks  u8 [E, rows, K / 32, 16]: two E2M1 codes a byte, the first in the low half
    X_scales  u8 [E, rows, K / 32]: weight = code * 2^(scale - 127)

These are [E, out, in], and the experts of the model, X, are [E, in, out]: X is stored as its transpose. Gate and up are
alternate rows in both. See ``convert_moe_packed_tensors`` in ``transformers.integrations.mxfp4``.
"""

from __future__ import annotations

from typing import ClassVar

from ..huggingface.modules import CODES, Parts, Planes, QuantizedModules, Weight

_BYTES, _COLUMNS = 16, 32  # of a block


class MXFP4(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "mxfp4"."""

    kind: ClassVar[str] = "mxfp4"
    CODE_DTYPES = ("u8",)
    SUFFIXES = {"_blocks": CODES, "_scales": "scale"}

    def prepare(self) -> None:
        self.check_listed("modules_to_not_convert")

    def weight(self, name: str, parts: Parts) -> Weight:
        codes = self.part(name, parts, CODES, ("u8",))
        if len(codes.shape) != 4 or codes.shape[-1] != _BYTES:
            raise self.error(codes, f"has shape {list(codes.shape)}, expected experts, rows, blocks and {_BYTES} bytes")
        experts, rows, blocks, _ = codes.shape
        scale = self.part(name, parts, "scale", ("u8",), codes.shape[:-1])

        def read() -> Planes:
            return {CODES: self.value(codes).reshape(experts, rows, blocks * _BYTES), "scale": self.value(scale)}

        return Weight((experts, rows, blocks * _COLUMNS), "mxfp4", read, transposed=True)
