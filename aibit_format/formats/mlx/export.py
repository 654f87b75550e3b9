"""Writes checkpoints of MLX, and of transformers for Metal. See ``source`` for the layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...schemes import Scheme
from ...schemes.microscaling import MXFP4, MXFP8, NVFP4
from ..fp8.scales import grid
from ..huggingface.forms import Form, NotHeldError, Part, Planes, Stored
from ..huggingface.integers import integers_of, stream, word_count, words
from .source import BITS, GROUPS, MODES

_AFFINE = "affine"
_SMALL: dict[type[Scheme], str] = {MXFP4: "mxfp4", MXFP8: "mxfp8", NVFP4: "nvfp4"}
_Kind = tuple[str, int, int]  # mode, bits, group_size


class MLXForm(Form):
    """Write integers with biases, and small floats in groups; widths may differ by module."""

    name: ClassVar[str] = "mlx"
    METHODS = ("mlx", "metal")
    PLACES = frozenset({"linear", "embedding"})
    TIED = True

    def settings(self, stored: Stored) -> None:
        if not stored.is_weight or len(stored.shape) != 2:
            raise NotHeldError("MLX has matrices alone")
        mode, bits, group = self._kind(stored)
        if bits not in BITS or group not in GROUPS or stored.shape[-1] % max(group, 32):
            raise NotHeldError(f"MLX has no {bits} bits in groups of {group} for {list(stored.shape)}")
        if mode == "nvfp4" and not self.said:
            raise NotHeldError("MLX has no scale of a whole tensor")

    def parts(self, stored: Stored) -> dict[str, Part]:
        mode, bits, group = self._kind(stored)
        scheme, (rows, columns) = stored.scheme, stored.shape
        shape = grid(stored.shape, (1, group))
        codes = Part("u32", (rows, word_count(columns, bits)), lambda planes: words(stream(scheme, planes)).view("<u4"))
        if mode != _AFFINE:
            return {".weight": codes, ".scales": Part("u8", shape, lambda planes: self._scale(stored, planes))}
        found = integers_of(scheme)
        dtype = found.scale if found else "f32"
        bias = ".qbiases" if self.origin.method == "metal" else ".biases"
        return {
            ".weight": codes, ".scales": Part(dtype, shape, lambda planes: planes["scale"]),
            bias: Part(dtype, shape, lambda planes: planes["bias"]),
        }  # fmt: skip

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        kinds = {each.module: self._kind(each) for each in kept}
        default, _ = Counter(kinds.values()).most_common(1)[0]
        if self.said:
            default = (str(self.said.get("mode", _AFFINE)), self.said.get("bits", 0), self.said.get("group_size", 0))
        said: dict[str, Any] = {**_described(default), **self.said}
        for path in [path for path, each in said.items() if isinstance(each, Mapping) or each is False]:
            if (path in kinds) == (said[path] is False) and path != "quant_config":
                del said[path]  # of a module that is quantized otherwise, or no longer
        for module, kind in kinds.items():
            its_own = said.get(module)
            stated = {**said, **its_own} if isinstance(its_own, Mapping) else said
            if (stated.get("mode", _AFFINE), stated.get("bits"), stated.get("group_size")) != kind:
                said[module] = {"mode": kind[0], **_described(kind)}
        if "modules_to_not_convert" in said or self.origin.method == "metal":
            said |= self.lists(kept, skipped)
        return said

    def with_config(self, config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
        if said.get("quant_method") != "mlx" and "quant_method" in said:
            return super().with_config(config, said)
        own = {key: value for key, value in said.items() if key != "quant_method"}  # MLX writes none
        return {**config, "quantization": own, "quantization_config": own}

    def _kind(self, stored: Stored) -> _Kind:
        found = integers_of(stored.scheme)
        if found is not None and found.zero == "bias" and not found.ordered:
            return _AFFINE, found.bits, found.group
        mode = _SMALL.get(type(stored.scheme))
        if (
            mode is None
            or getattr(stored.scheme, "codes", "") == "f8_e5m2"
            or stored.scheme.text.endswith("reciprocal=1")
        ):
            raise NotHeldError("MLX has integers with biases, mxfp4, mxfp8 and nvfp4 alone")
        bits, group, _ = MODES[mode]
        return mode, bits, group

    def _scale(self, stored: Stored, planes: Planes) -> np.ndarray:
        if "global_scale" in planes and (planes["global_scale"] != 1).any():
            raise self.error(stored, "has a scale of the whole tensor, which MLX has not")
        return planes["scale"]


def _described(kind: _Kind) -> dict[str, Any]:
    mode, bits, group = kind
    return {"group_size": group, "bits": bits} | ({} if mode == _AFFINE else {"mode": mode})
