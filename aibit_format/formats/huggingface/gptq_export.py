"""Writes GPTQ checkpoints, ``checkpoint_format`` "gptq" or "gptq_v2". See ``gptq`` for the layout.

Without a source that says which, zero points decide: "gptq" stores them minus one, and "gptq_v2" holds none beyond the
largest code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .forms import Part, Planes, Stored, is_expression
from .integers import Integers, integers_of, packed_words, stream, word_count, words
from .packed_export import PackedForm
from .settings import AUTOROUND, packing


class GPTQForm(PackedForm):
    """Write integers of 2, 3, 4 or 8 bits in groups, maybe with columns in another order."""

    name: ClassVar[str] = "gptq"
    METHODS = ("gptq",)
    PLACES = frozenset({"linear", "conv1d", "experts"})
    WIDTHS = (2, 3, 4, 8)
    ORDERED = True

    @property
    def format(self) -> str:
        """Return the ``checkpoint_format``."""
        if self._by_autoround:
            return "gptq" if "gptq" in packing(self.said) else "gptq_v2"
        said = self.said.get("checkpoint_format") or self.said.get("format")
        if self.said:
            return "gptq_v2" if str(said).lower() == "gptq_v2" else "gptq"
        return self._needed

    def words(self, stored: Stored, found: Integers, groups: int) -> dict[str, Part]:
        rows, columns = stored.shape

        def qzeros(planes: Planes) -> np.ndarray:
            if self._borrowed:
                plain = packed_words(self.zeros(stored, found, planes), found.bits)
                ones = packed_words(np.ones((1, rows), np.uint8), found.bits)
                return (plain.view("<u4") - ones.view("<u4")).view("<i4")
            return packed_words(self.zeros(stored, found, planes, int(self.format == "gptq")), found.bits)

        parts = {
            ".qweight": Part("i32", (word_count(columns, found.bits), rows),
                             lambda planes: words(stream(stored.scheme, planes)).T),
            ".qzeros": Part("i32", (groups, word_count(rows, found.bits)), qzeros),
        }  # fmt: skip
        if found.ordered:
            parts[".g_idx"] = Part("i32", (columns,), lambda planes: planes["group_index"])
        elif ".g_idx" in self.origin.parts or not self.said:
            index = np.arange(columns, dtype=np.int32) // (found.group or columns)
            parts[".g_idx"] = Part("i32", (columns,), lambda planes: index)
        return parts

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        settings = self.settings(kept[0])
        ordered = any(found.ordered for each in kept if (found := integers_of(each.scheme)))
        said = {
            "quant_method": "gptq", "desc_act": ordered, **self.said, "bits": settings.bits,
            "group_size": settings.group or -1, "sym": settings.symmetric,
        }  # fmt: skip
        if ordered:
            said["desc_act"] = True
        if not self._by_autoround:
            said["checkpoint_format"] = self.format
        given = said.get("dynamic")
        dynamic: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
        # Modules outside the blocks of a model, such as heads, are not quantized unless the config says so.
        for name in skipped:
            if re.search(r"\.\d+\.", name) and not any(_leaves_out(pattern, name) for pattern in dynamic):
                dynamic[f"-:^{re.escape(name)}$"] = {}
        if any(not re.search(r"\.\d+\.", each.module) for each in kept):
            said["lm_head"] = True
        return said | ({"dynamic": dynamic} if dynamic else {})

    @property
    def _by_autoround(self) -> bool:
        return str(self.said.get("quant_method")).endswith(AUTOROUND)

    @property
    def _borrowed(self) -> bool:
        """Tell whether GPTQModel wrote the zero points: it takes ones from whole words."""
        meta = self.said.get("meta")
        writer = str(meta.get("quantizer")) if isinstance(meta, dict) else ""
        return self.format == "gptq" and "gptqmodel" in writer.lower()

    @cached_property
    def _needed(self) -> str:
        """Return the format that holds the zero points of all tensors; "gptq" if both do."""
        for name in self.file:
            info = self.file.info(name)
            found = integers_of(info.scheme)
            if found is not None and found.zero == "code" and (self.file.planes(name)["zero_point"] == 0).any():
                return "gptq_v2"
        return "gptq"


def _leaves_out(pattern: str, module: str) -> bool:
    """Tell whether an entry of ``dynamic`` says that a module is not quantized: "-:" and an expression."""
    expression = pattern.removeprefix("-:")
    return expression != pattern and is_expression(expression) and re.match(expression, module) is not None
