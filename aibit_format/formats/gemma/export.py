"""Writes Gemma's checkpoints of integers. See ``source`` for the layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..huggingface.forms import Form, NotHeldError, Part, Planes, Stored, is_expression
from ..huggingface.integers import integers_of, stream
from .source import BITS


class GemmaForm(Form):
    """Write integers of 2, 4 or 8 bits with a scale a row; widths may differ by module."""

    name: ClassVar[str] = "gemma"
    METHODS = ("gemma",)
    PLACES = frozenset({"linear", "embedding"})
    TIED = True

    def settings(self, stored: Stored) -> None:
        found = integers_of(stored.scheme)
        if found is None or found.bits not in BITS or found.zero != "none" or found.ordered:
            raise NotHeldError("gemma has symmetric integers of 2, 4 or 8 bits alone")
        columns = stored.shape[-1]
        if len(stored.shape) != 2 or columns * found.bits % 8 or columns % (found.group or columns):
            raise NotHeldError(f"gemma has rows of whole bytes and groups alone, not {list(stored.shape)}")
        if found.group and not self._is_embedding(stored):
            raise NotHeldError("gemma has one scale a row")

    def parts(self, stored: Stored) -> dict[str, Part]:
        found = integers_of(stored.scheme)
        if found is None:
            raise self.error(stored, f"is {stored.scheme.text}")
        rows, columns = stored.shape
        bits, groups = found.bits, columns // (found.group or columns)
        codes, scale = (".embedding_quantized", ".embedding_scale") if self._is_embedding(stored) else (
            ".weight", ".weight_scale")  # fmt: skip

        def packed(planes: Planes) -> np.ndarray:
            plane = stream(stored.scheme, planes)
            return (plane ^ np.uint8(128)).view(np.int8) if bits == 8 else plane

        # Zero stands for inputs and outputs that are not quantized; without a number, transformers makes one up.
        zero = Part("f32", (), lambda planes: np.zeros((), np.float32))
        ends = ("input_activation_scale", "output_activation_scale") if codes == ".weight" else ()
        without = self.origin.left_out or not self.said
        return {
            codes: Part("i8" if bits == 8 else "u8", (rows, columns * bits // 8), packed),
            scale: Part(found.scale, (rows, groups), lambda planes: planes["scale"]),
            **{f".{end}": zero for end in ends if without},
        }

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        bits = {each.module: found.bits for each in kept if (found := integers_of(each.scheme))}
        default = self.said.get("num_bits", 4) if self.said else Counter(bits.values()).most_common(1)[0][0]
        given = self.said.get("module_quant_configs")
        patterns = {
            pattern: each for pattern, each in (given.items() if isinstance(given, Mapping) else ())
            if _matches(pattern, bits)
        }  # fmt: skip
        its_own = {f"^{re.escape(module)}$": {"num_bits": count} for module, count in bits.items()
                   if count != _stated(module, patterns, default)}  # fmt: skip
        said = {"quant_method": "gemma", **self.said, "num_bits": default, **self.lists(kept, skipped)}
        return said | ({"module_quant_configs": {**its_own, **patterns}} if its_own or patterns else {})

    def _is_embedding(self, stored: Stored) -> bool:
        parts = self.origin.parts
        alone = ".embedding_scale" in parts and ".weight_scale" not in parts
        return stored.kind == "embedding" or alone


def _matches(pattern: str, modules: Iterable[str]) -> bool:
    """Tell whether an expression is found in the name of a module."""
    return is_expression(pattern) and any(re.search(pattern, module) for module in modules)


def _stated(module: str, patterns: Mapping[str, Any], default: int) -> int:
    """Return the bits that a config states for a module: those of the first expression that is found in its name."""
    each = next((each for pattern, each in patterns.items() if re.search(pattern, module)), default)
    return each.get("num_bits", default) if isinstance(each, Mapping) else each
