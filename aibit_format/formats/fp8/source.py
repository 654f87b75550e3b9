"""Reads FP8 checkpoints as DeepSeek, Qwen3 and MiniMax publish them, and as FBGEMM and MXFP8 exports write them.

    X.weight            f8_e4m3 [N, K], or [E, N, K] of fused experts
    X.weight_scale_inv  f32, bf16 or e8m0 [ceil(N / rows), ceil(K / columns)]: weight = code * scale, whatever its name
                        says. Other names: weight_scale, scale, qscale_weight; of fused experts NAME_scale_inv
    X.activation_scale  and others of activations, which say nothing of the weight

``weight_block_size`` of the config is [rows, columns]; null means a scale a row (FBGEMM), or one a tensor. With
``scale_fmt`` "ue8m0" scales are powers of two, and may be stored as bytes. DeepSeek-V4's experts are two E2M1 codes
a byte, the first in the low half, with an E8M0 scale for 32 columns. See ``Fp8Dequantize`` in
``transformers.integrations.finegrained_fp8``.
"""

from __future__ import annotations

from typing import ClassVar

from ..huggingface.modules import CODES, LEFT_OUT, Parts, Planes, QuantizedModules, Weight
from ..source import SourceTensor
from .scales import E4M3, E8M0, SCALES, grid, scheme_of, without_blocks

_BLOCK = (128, 128)  # transformers' own, if the config says nothing
_MX_COLUMNS = 32
_PACKED = ("u8", "i8")  # two E2M1 codes a byte


class Fp8(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "fp8", "fbgemm_fp8" or "mxfp8"."""

    kind: ClassVar[str] = "fp8"
    CODE_DTYPES = (E4M3,)
    SUFFIXES = {
        **dict.fromkeys((".weight_scale_inv", ".weight_scale", ".qscale_weight", "_scale_inv"), "scale"),
        **dict.fromkeys((".activation_scale", ".input_scale", ".input_scale_ub", ".qscale_act", ".k_scale", ".v_scale",
                         "_activation_scale", "_activation_scale_inv"), LEFT_OUT),
    }  # fmt: skip

    def prepare(self) -> None:
        self._block = self._said_block()
        for name in list(self.tensors):  # DeepSeek-V4's name, which norms of others have too
            weight = name.removesuffix(".scale") + ".weight"
            if name.endswith(".scale") and weight in self.tensors and weight not in self._parts:
                self._parts[weight] = {CODES: self.tensors.pop(weight), "scale": self.tensors.pop(name)}
        for key in ("modules_to_not_convert", "ignored_layers"):
            self.check_listed(key)

    def weight(self, name: str, parts: Parts) -> Weight:
        codes, scale = self.part(name, parts, CODES, (E4M3, *_PACKED)), self.part(name, parts, "scale")
        stored = self._scale_dtype(scale)
        if codes.dtype in _PACKED:
            return self._mxfp4(name, parts, stored)
        block = self._block or without_blocks(codes.shape, scale.shape)
        if block is None:
            raise self.error(scale, f"has shape {list(scale.shape)}: no scale a row, nor one for {list(codes.shape)}")
        shape = grid(codes.shape, block)
        if self._block:
            self.part(name, parts, "scale", shape=shape)

        def read() -> Planes:
            return {CODES: self.value(codes), "scale": self.value(scale).reshape(shape)}

        return Weight(codes.shape, scheme_of(block, stored), read)

    def _mxfp4(self, name: str, parts: Parts, stored: str) -> Weight:
        """Join E2M1 codes and their scales, whose planes have the same bytes."""
        codes, scale = parts[CODES], parts["scale"]
        if stored != E8M0 or self.said.get("expert_dtype") != "fp4":
            raise self.error(codes, f"is {codes.dtype} with scales {scale.dtype}, and no expert_dtype 'fp4' says why")
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        self.part(name, parts, "scale", shape=grid(shape, (1, _MX_COLUMNS)))
        return Weight(shape, "mxfp4", lambda: {
            CODES: self.value(codes).view("u1"), "scale": self.value(scale).view("u1")
        })  # fmt: skip

    def _scale_dtype(self, scale: SourceTensor) -> str:
        """Return the dtype that scales have; bytes are powers of two if the config says so."""
        if scale.dtype == "u8" and (self.said.get("scale_fmt") == "ue8m0" or self.said.get("quant_method") == "mxfp8"):
            return E8M0
        if scale.dtype not in SCALES:
            raise self.error(scale, f"is {scale.dtype}, expected {' or '.join(SCALES)}")
        return scale.dtype

    def _said_block(self) -> tuple[int, int] | None:
        """Return the size of blocks, [rows, columns]; ``None`` for a scale a row or a tensor."""
        method = self.said.get("quant_method")
        default = {"fp8": _BLOCK, "mxfp8": (1, _MX_COLUMNS)}.get(str(method))
        said = self.said.get("weight_block_size", default)
        if said is None:
            return None
        if not isinstance(said, list | tuple) or len(said) != 2 or not all(type(n) is int and n > 0 for n in said):
            raise self.refused(f"weight_block_size {str(said)[:80]}, expected two sizes")
        return said[0], said[1]
