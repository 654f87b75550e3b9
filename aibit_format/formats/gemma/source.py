"""Reads Gemma's checkpoints of integers from quantization-aware training: 2, 4 or 8 bits, a scale a row.

    weight               i8 [N, K]; or u8 [N, K / 2] or [N, K / 4], the first code in the lowest bits, which is the
                         value plus 8 or 2. Of embeddings embedding_quantized
    weight_scale         f32 [N, 1]; of embeddings embedding_scale
    input_activation_scale, output_activation_scale  which say nothing of the weight

``num_bits`` of the config is for all modules but those that a regular expression of ``module_quant_configs`` is found
in. See ``transformers.integrations.gemma_quant``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..huggingface.modules import CODES, LEFT_OUT, Parts, Planes, QuantizedModules, Weight, plane_of, stream_codes

BITS = (2, 4, 8)


class Gemma(QuantizedModules):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "gemma"."""

    kind: ClassVar[str] = "gemma"
    CODE_DTYPES = ("i8", "u8")
    SUFFIXES = {
        ".weight_scale": "scale", ".embedding_scale": "scale", ".embedding_quantized": CODES,
        ".input_activation_scale": LEFT_OUT, ".output_activation_scale": LEFT_OUT,
    }  # fmt: skip

    def prepare(self) -> None:
        self._overrides: list[tuple[re.Pattern[str], int]] = []
        said = self.said.get("module_quant_configs") or {}
        for pattern, each in said.items() if isinstance(said, Mapping) else ():
            try:
                compiled = re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise self.refused(f"module_quant_configs {pattern!r}, no regular expression: {error}") from error
            bits = each.get("num_bits", self._bits()) if isinstance(each, Mapping) else each
            self._overrides.append((compiled, self._checked(bits)))
            if not any(compiled.search(name.removesuffix(".weight")) for name in self._parts):
                raise self.refused(f"module_quant_configs {pattern!r}, which matches no quantized module")
        self.check_listed("modules_to_not_convert")

    def weight(self, name: str, parts: Parts) -> Weight:
        module = name.removesuffix(".weight")
        bits = next((bits for pattern, bits in self._overrides if pattern.search(module)), self._bits())
        codes = self.part(name, parts, CODES, ("i8",) if bits == 8 else ("u8",))
        if len(codes.shape) != 2:
            raise self.error(codes, f"has shape {list(codes.shape)}, expected rows and columns")
        rows, packed = codes.shape
        columns = packed * 8 // bits
        scale = self.part(name, parts, "scale", ("f32", "bf16", "f16"))
        groups = scale.shape[-1] if len(scale.shape) == 2 else 0  # embeddings may have more than one a row
        if scale.shape != (rows, groups) or not groups or columns % groups:
            raise self.error(scale, f"has shape {list(scale.shape)}, expected [{rows}, 1] for {name!r}")
        group = "row" if groups == 1 else columns // groups

        def read() -> Planes:
            stored = self.value(codes)
            if bits == 8:
                plane = plane_of(stored.view("u1") ^ np.uint8(128), 8, "u8")
            else:
                plane = stream_codes(stored, bits, columns, f"u{bits}")
            return {CODES: plane, "scale": self.value(scale)}

        return Weight((rows, columns), f"int-group,bits={bits},group={group},scale={scale.dtype}", read)

    def _bits(self) -> int:
        return self._checked(self.said.get("num_bits", 4))

    def _checked(self, bits: object) -> int:
        if type(bits) is not int or bits not in BITS:
            raise self.refused(f"num_bits {str(bits)[:80]}, expected one of {', '.join(map(str, BITS))}")
        return bits
