"""Writes checkpoints as Model Optimizer exports them. See ``source`` for the layout."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, ClassVar

from ...schemes.fp8_block import Fp8Block
from ...schemes.microscaling import MXFP8, NVFP4
from ..fp8.scales import E4M3, E8M0, grid
from ..huggingface.forms import Form, NotHeldError, Part, Stored
from .source import BLOCKS

_NVFP4, _WEIGHTS_ALONE, _MXFP8, _FP8 = "NVFP4", "W4A16_NVFP4", "MXFP8", "FP8"


class ModelOptForm(Form):
    """Write NVFP4, MXFP8 and 8-bit floats with scales."""

    name: ClassVar[str] = "modelopt"
    METHODS = ("modelopt", "modelopt_fp4")
    PLACES = frozenset({"linear", "experts"})
    LISTS = ("ignore", "exclude_modules")

    def settings(self, stored: Stored) -> str | None:
        if len(stored.shape) != 2 or not stored.is_weight:
            raise NotHeldError("modelopt has matrices alone")
        found = self._algorithm(stored)
        if found == _FP8 and (self.origin.left_out or not self.said):
            raise NotHeldError("modelopt scales the inputs of FP8 layers by numbers that are not in the file")
        return None if self.said.get("quant_algo") == "MIXED_PRECISION" else found

    def parts(self, stored: Stored) -> dict[str, Part]:
        scheme, shape = stored.scheme, stored.shape
        if isinstance(scheme, NVFP4):
            overall = self.floats(".weight_scale_2", "global_scale", "f32", (1,))
            alone = Part("f32", (), overall.make)
            return {
                ".weight": Part("u8", (shape[0], shape[1] // 2), lambda planes: planes["codes"]),
                ".weight_scale": Part(E4M3, grid(shape, scheme.block), lambda planes: planes["scale"]),
                ".weight_scale_2": overall if ".weight_scale_2" in self.origin.parts else alone,
            }
        codes = {".weight": Part(E4M3, shape, lambda planes: planes["codes"])}
        if not isinstance(scheme, Fp8Block):
            return codes | {".weight_scale": self.floats(".weight_scale", "scale", E8M0, grid(shape, (1, 32)),
                                                         ("u8", E8M0))}  # fmt: skip
        scale = self.floats(".weight_scale", "scale", scheme.steps["scale"], grid(shape, scheme.block))
        found = self.origin.part(".weight_scale", (scale.dtype,))
        if found is not None and found[1] == 4:
            rows, columns = grid(shape, scheme.block)
            scale = Part(scale.dtype, (rows, 1, columns, 1), scale.make)
        return codes | {".weight_scale": scale}

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        algorithm = self._algorithm(kept[0])
        said: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": algorithm, **self.said}
        if said["quant_algo"] == _NVFP4 and (self.origin.left_out or not self.said):
            said["quant_algo"] = _WEIGHTS_ALONE  # scales of inputs are not in the file
        if not self.said:
            group = 32 if algorithm == _MXFP8 else 16
            weights = {"num_bits": 8 if algorithm == _MXFP8 else 4, "type": "float", "group_size": group}
            said |= {"group_size": group, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
        return {**said, **self.lists(kept, skipped)}

    def entry(self, name: str, layers: Sequence[str]) -> str:
        return name

    def names_module(self, listed: str, module: str) -> bool:
        return fnmatch.fnmatchcase(module, listed)

    def is_entry(self, listed: str) -> bool:
        return True

    def _algorithm(self, stored: Stored) -> str:
        scheme = stored.scheme
        if isinstance(scheme, NVFP4) and not scheme.reciprocal and stored.shape[-1] % 2 == 0:
            return _NVFP4
        if isinstance(scheme, MXFP8) and scheme.codes == E4M3:
            return _MXFP8
        block = scheme.block if isinstance(scheme, Fp8Block) and scheme.steps["scale"] != E8M0 else None
        if block in ((0, 0), (1, 0), *BLOCKS):
            return _FP8
        raise NotHeldError("modelopt has NVFP4, MXFP8, and 8-bit floats with scales of 128 by 128, rows or a tensor")
