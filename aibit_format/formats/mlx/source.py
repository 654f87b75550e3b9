"""Reads checkpoints of MLX, and those that transformers quantizes for Metal.

    affine  weight u32 [N, K * bits / 32], a stream of codes from the lowest bits; scales and biases [N, K / group_size]
            (Metal: qbiases): weight = code * scale + bias
    mxfp4   weight u32 [N, K / 8], scales u8 [N, K / 32]: an exponent
    mxfp8   weight u32 [N, K / 4] of f8_e4m3, scales u8 [N, K / 32]
    nvfp4   weight u32 [N, K / 8], scales u8 [N, K / 16] of f8_e4m3

``quantization`` of the config is group_size, bits and mode, and the same by path for modules that differ; false by a
path says that a module is not quantized. See ``mlx.core.dequantize``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..fp8.scales import grid
from ..huggingface.modules import CODES, Parts, Planes, QuantizedModules, Weight, stream_codes
from ..source import SourceTensor

_FLOATS = ("f16", "bf16", "f32")
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (16, 32, 64, 128)
# Mode of floats -> bits of a code, columns that share a scale, and the scheme.
MODES = {"mxfp4": (4, 32, "mxfp4"), "mxfp8": (8, 32, "mxfp8"), "nvfp4": (4, 16, "nvfp4")}


class MLX(QuantizedModules):
    """Provide the tensors of the directory ``path``, which MLX quantized, or transformers for Metal."""

    kind: ClassVar[str] = "mlx"
    CODE_DTYPES = ("u32",)
    SUFFIXES = {".scales": "scale", ".biases": "bias", ".qbiases": "bias"}

    def prepare(self) -> None:
        self._paths = {path: each for path, each in self.said.items() if isinstance(each, Mapping) or each is False}
        modules = {name.removesuffix(".weight") for name in self._parts}
        for path, each in self._paths.items():
            if isinstance(each, Mapping) and each and path not in modules and path != "quant_config":
                raise self.refused(f"settings for {path!r}, which is no quantized module")
        self.check_listed("modules_to_not_convert")

    def weight(self, name: str, parts: Parts) -> Weight:
        module = name.removesuffix(".weight")
        codes, its_own = self.part(name, parts, CODES, ("u32",)), self._paths.get(module, {})
        if not isinstance(its_own, Mapping):
            raise self.error(codes, f"is quantized, but the config says that {module!r} is not")
        said = {**self.said, **its_own}
        mode, bits, group = said.get("mode", "affine"), said.get("bits"), said.get("group_size")
        where = f"bits {bits!r}, group_size {group!r}, mode {str(mode)[:80]!r} of {module!r}"
        if not isinstance(mode, str):
            raise self.refused(f"{where}, expected a name")
        if mode in MODES and (bits, group) != MODES[mode][:2]:
            raise self.refused(f"{where}, expected {MODES[mode][0]} and {MODES[mode][1]}")
        if mode not in ("affine", *MODES) or type(bits) is not int or bits not in BITS or group not in GROUPS:
            raise self.refused(f"{where}: bits {BITS}, group_size {GROUPS}, mode affine or {', '.join(MODES)}")
        *rows, words = codes.shape
        columns = words * 32 // bits
        shape = (*rows, columns)
        if words * 32 % bits or columns % group:
            raise self.error(codes, f"has shape {list(codes.shape)}: no groups of {group} codes of {bits} bits")
        return self._floats(name, parts, shape, mode) if mode in MODES else self._affine(name, parts, shape, said)

    def _affine(self, name: str, parts: Parts, shape: tuple[int, ...], said: Mapping[str, Any]) -> Weight:
        bits, group, codes = said["bits"], said["group_size"], parts[CODES]
        scale = self.part(name, parts, "scale", _FLOATS, grid(shape, (1, group)))
        bias = self.part(name, parts, "bias", (scale.dtype,), scale.shape)

        def read() -> Planes:
            return {
                CODES: self._stream(codes, bits, shape[-1]), "scale": self.value(scale), "bias": self.value(bias),
            }  # fmt: skip

        return Weight(shape, f"int-group,bits={bits},group={group},scale={scale.dtype},zero=bias", read)

    def _floats(self, name: str, parts: Parts, shape: tuple[int, ...], mode: str) -> Weight:
        bits, group, scheme = MODES[mode]
        codes, scale = parts[CODES], self.part(name, parts, "scale", ("u8",), grid(shape, (1, group)))
        if "bias" in parts:
            raise self.error(parts["bias"], f"belongs to mode affine, and {name!r} is {mode}")

        def read() -> Planes:
            planes = {CODES: self._stream(codes, bits, shape[-1]), "scale": self.value(scale)}
            # MLX has no scale of the whole tensor.
            return planes | ({"global_scale": np.ones(1, np.float32)} if scheme == "nvfp4" else {})

        return Weight(shape, scheme, read)

    def _stream(self, codes: SourceTensor, bits: int, columns: int) -> np.ndarray:
        return stream_codes(self.value(codes), bits, columns, f"u{bits}")
