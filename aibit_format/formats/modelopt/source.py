"""Reads checkpoints that NVIDIA's Model Optimizer exports: NVFP4, FP8 and MXFP8, also mixed.

    NVFP4   weight u8 [N, K / 2], the first code in the low half; weight_scale f8_e4m3 [N, K / 16]; weight_scale_2 f32,
            one number: weight = code * (scale * weight_scale_2)
    FP8     weight f8_e4m3 [N, K]; weight_scale f32: one number, [N], [N, 1], or of blocks of 128 by 128
    MXFP8   weight f8_e4m3 [N, K]; weight_scale u8 [N, K / 32]: an exponent
    MXFP4   weight u8 [N, K / 2] as of NVFP4; weight_scale u8 [N, K / 32]

``quant_algo`` is in ``quantization_config``, or in ``hf_quant_config.json`` beside the config; of MIXED_PRECISION
``quantized_layers`` have one for each module. ``exclude_modules`` or ``ignore`` are patterns of modules that are not
quantized; ``config_groups`` say the same again in the terms of compressed-tensors. What AWQ or SmoothQuant have put
into the inputs (``pre_quant_scale``) would be lost, and is refused.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import ClassVar

from ..fp8.scales import E4M3, E8M0, SCALES, grid, scheme_of, without_blocks
from ..huggingface.modules import CODES, LEFT_OUT, Parts, Planes, QuantizedModules, Weight, listed

# Algorithm -> dtype of the codes of its weights.
_ALGORITHMS = {
    **dict.fromkeys(("NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "MXFP4", "W4A8_MXFP4_FP8"), "u8"),
    **dict.fromkeys(("FP8", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN", "MXFP8"), E4M3),
}
_MIXED = "MIXED_PRECISION"
BLOCKS = ((128, 128), (1, 128))
_NV_COLUMNS, _MX_COLUMNS = 16, 32
_SMOOTHED = "input's scale"


class ModelOpt(QuantizedModules):
    """Provide the tensors of the directory ``path``, which Model Optimizer exported."""

    kind: ClassVar[str] = "modelopt"
    CODE_DTYPES = (E4M3, "u8")
    SUFFIXES = {
        ".weight_scale": "scale", ".weight_scale_2": "global_scale", ".pre_quant_scale": _SMOOTHED,
        **dict.fromkeys((".input_scale", ".k_scale", ".v_scale", ".q_scale", ".output_scale"), LEFT_OUT),
    }  # fmt: skip

    def prepare(self) -> None:
        if self.choice("quant_algo", (*_ALGORITHMS, _MIXED)) == _MIXED:
            self._check_layers()
        for key in ("exclude_modules", "ignore"):
            for pattern in self.names(key):
                for name, parts in self._parts.items():
                    if fnmatch.fnmatchcase(name.removesuffix(".weight"), pattern):
                        raise self.error(next(iter(parts.values())), f"is quantized, but {key} names {pattern!r}")

    def weight(self, name: str, parts: Parts) -> Weight:
        if _SMOOTHED in parts:
            raise self.error(parts[_SMOOTHED], "scales the inputs of its layer, which no scheme here does")
        codes = self.part(name, parts, CODES, ("u8", E4M3))
        if codes.dtype == E4M3:
            return self._fp8(name, parts)
        return self._mxfp4(name, parts) if self.part(name, parts, "scale").dtype == "u8" else self._nvfp4(name, parts)

    def _check_layers(self) -> None:
        """Compare what is said of each module with its weight."""
        layers = self.said.get("quantized_layers")
        if not isinstance(layers, Mapping) or not layers:
            raise self.refused(f"quant_algo {_MIXED} and quantized_layers {str(layers)[:80]}, expected an object")
        found = 0
        for module, said in layers.items():
            algorithm = said.get("quant_algo") if isinstance(said, Mapping) else said
            if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
                raise self.refused(
                    f"quant_algo {str(algorithm)[:80]!r} of {module[:80]!r}, known: {', '.join(_ALGORITHMS)}"
                )
            name = f"{module}.weight"
            if name in self.tensors:
                raise self.error(self.tensors[name], f"is not quantized, but quantized_layers says {algorithm}")
            codes = self._parts.get(name, {}).get(CODES)
            if codes is not None and codes.dtype != _ALGORITHMS[algorithm]:
                raise self.error(codes, f"is {codes.dtype}, but quantized_layers says {algorithm}")
            found += codes is not None or any(key.startswith(f"{module}.") for key in self._parts)
        if not found:
            raise self.refused(f"quantized_layers that name {listed(layers)}, of which none is there")

    def _mxfp4(self, name: str, parts: Parts) -> Weight:
        codes = parts[CODES]
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        scale = self.part(name, parts, "scale", ("u8",), grid(shape, (1, _MX_COLUMNS)))
        if "global_scale" in parts:
            raise self.error(parts["global_scale"], "belongs to NVFP4, and the scales beside it are exponents")
        return Weight(shape, "mxfp4", lambda: {CODES: self.value(codes), "scale": self.value(scale)})

    def _nvfp4(self, name: str, parts: Parts) -> Weight:
        codes = parts[CODES]
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        scale = self.part(name, parts, "scale", (E4M3,), grid(shape, (1, _NV_COLUMNS)))
        overall = self.part(name, parts, "global_scale", ("f32",))
        wanted = (*shape[:-2], 1)  # experts have one each
        if overall.shape not in (wanted, shape[:-2]):
            raise self.error(overall, f"has shape {list(overall.shape)}, expected {list(wanted)}")

        def read() -> Planes:
            number = self.value(overall).reshape(wanted)
            return {CODES: self.value(codes), "scale": self.value(scale), "global_scale": number}

        return Weight(shape, "nvfp4", read)

    def _fp8(self, name: str, parts: Parts) -> Weight:
        codes = parts[CODES]
        if "global_scale" in parts:
            raise self.error(parts["global_scale"], f"belongs to 4-bit codes, and {codes.name!r} is {codes.dtype}")
        scale = self.part(name, parts, "scale", (*SCALES, "u8"))
        stored = E8M0 if scale.dtype == "u8" else scale.dtype
        # Block scales may have the sizes of the blocks as dimensions of 1: [N / 128, 1, K / 128, 1].
        shape = scale.shape
        if len(shape) == len(codes.shape) + 2 and shape[-1] == shape[-3] == 1:
            shape = (*shape[:-4], shape[-4], shape[-2])
        blocks = ((1, _MX_COLUMNS),) if stored == E8M0 else BLOCKS
        block = next((block for block in blocks if grid(codes.shape, block) == shape), None)
        block = block or (without_blocks(codes.shape, shape) if stored != E8M0 else None)
        if block is None:
            raise self.error(scale, f"has shape {list(scale.shape)}: no scale a row, block or tensor of "
                             f"{list(codes.shape)}")  # fmt: skip
        wanted = grid(codes.shape, block)

        def read() -> Planes:
            return {CODES: self.value(codes), "scale": self.value(scale).reshape(wanted)}

        return Weight(codes.shape, scheme_of(block, stored), read)
