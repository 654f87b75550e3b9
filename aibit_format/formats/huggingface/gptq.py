"""Reads a GPTQ checkpoint: a Hugging Face directory as AutoGPTQ, GPTQModel, optimum or AutoRound write it.

``qweight`` i32 [K / 8, N]: nibble i of word [k, n], from the lowest, is the code of column 8 k + i in row n.
``qzeros``: nibble i of word [g, w] is the zero point of row 8 w + i; ``checkpoint_format`` "gptq" stores it minus
one, "gptq_v2" unchanged. ``g_idx`` i32 [K]: the group of each column. With ``desc_act`` they are in another order than
0 0 ... 1 1 ...; otherwise it carries no information and is left out. Layout and arithmetic are those of ``QuantLinear``
in https://github.com/AutoGPTQ/AutoGPTQ and ``TorchQuantLinear`` in https://github.com/ModelCloud/GPTQModel.

The meaning of a stored 15 in the format "gptq" depends on the writer. GPTQModel subtracts 0x11111111 from each word,
with borrows between nibbles, and adds it again when loading. Other kernels add one to each nibble, which gives 16.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..source import SourceTensor
from .packed_int4 import BITS, CODES, PackedInt4, Parts, unpack

_ORDER = tuple(range(CODES))
_ONES = np.uint32(0x11111111)
_PIECE_WORDS = 1 << 18  # words transposed at a time
_SAID_OF_MODULES = ("bits", "group_size", "sym", "checkpoint_format", "format")


class GPTQ(PackedInt4):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "gptq"."""

    kind: ClassVar[str] = "gptq"

    @property
    def format(self) -> Any:
        """Return the ``checkpoint_format``, which some versions call ``format``."""
        found = self._said.get("checkpoint_format") or self._said.get("format") or "gptq"
        return found.lower() if isinstance(found, str) else found

    def _symmetric(self) -> bool:
        return self._said.get("sym") is True

    def _check_said(self) -> None:
        if self.format not in ("gptq", "gptq_v2"):
            raise self._refused(f"checkpoint_format {self.format!r}, only 'gptq' and 'gptq_v2' are read here")
        if self._said.get("is_marlin_format"):
            raise self._refused("is_marlin_format, only 'gptq' and 'gptq_v2' are read here")
        dynamic = self._said.get("dynamic")
        for pattern, said in dynamic.items() if isinstance(dynamic, dict) else ():
            for key in _SAID_OF_MODULES if isinstance(said, dict) and not pattern.startswith("-:") else ():
                if key in said and said[key] != self._said.get(key):
                    raise self._refused(
                        f"{key} {said[key]!r} for modules {pattern!r} and {self._said.get(key)!r} for others; "
                        "only the same for all is read here"
                    )

    def _shape(self, qweight: tuple[int, ...]) -> tuple[int, int]:
        return qweight[1], qweight[0] * CODES

    def _codes(self, words: np.ndarray) -> np.ndarray:
        count, rows = words.shape
        codes = np.empty((rows, count * CODES // 2), np.uint8)
        step = max(64, _PIECE_WORDS // max(count, 1))
        for start in range(0, rows, step):
            # Transposing puts the bytes of a row in place; in each the first code is the lower nibble, not the higher.
            piece = np.ascontiguousarray(words[:, start : start + step].T).view(np.uint8).reshape(-1, codes.shape[1])
            codes[start : start + step] = (piece << BITS) | (piece >> BITS)
        return codes

    def _zeros(self, words: np.ndarray) -> np.ndarray:
        if self.format == "gptq_v2":
            return unpack(words, _ORDER)
        meta = self._said.get("meta")
        writer = str(meta.get("quantizer")) if isinstance(meta, dict) else ""
        if "gptqmodel" in writer.lower():
            return unpack(words.astype(np.uint32) + _ONES, _ORDER)
        return unpack(words, _ORDER) + np.uint8(1)

    def _ordered(self, parts: Parts, groups: int, columns: int) -> bool:
        found: SourceTensor | None = parts.get("g_idx")
        if found is None:
            if self._said.get("desc_act"):
                raise self._error(parts["qweight"], "has no g_idx, which desc_act needs")
            return False
        index = self._values(found)
        if index.size and (index.min() < 0 or index.max() >= groups):
            raise self._error(found, f"names groups {index.min()} to {index.max()}, there are {groups}")
        return bool((index != np.arange(columns) // (self.group or columns or 1)).any())

    def _hint(self, zero: np.ndarray) -> str:
        if self.format == "gptq" and (zero == 9).all():
            return "; as checkpoint_format 'gptq_v2' they would be: correct it in the config if that is what it is"
        return ""
