"""Reads a GPTQ checkpoint: a Hugging Face directory as AutoGPTQ, GPTQModel, optimum or AutoRound write it.

``qweight`` i32 [K * bits / 32, N]: the words of column n are a stream of the codes of row n, from the lowest bits; of 4
bits nibble i of word [k, n] is the code of column 8 k + i. ``qzeros`` i32 [G, N * bits / 32]: each row is a stream of
zero points; ``checkpoint_format`` "gptq" stores them minus one, "gptq_v2" unchanged. AutoRound writes the first as
auto_round:auto_gptq, and the second else. ``g_idx`` i32 [K]: the group of each column. With ``desc_act`` they are in
another order than 0 0 ... 1 1 ...; otherwise it carries no information and is left out. Layout and arithmetic are those
of ``QuantLinear`` in https://github.com/AutoGPTQ/AutoGPTQ and ``TorchQuantLinear`` in
https://github.com/ModelCloud/GPTQModel.

The meaning of a stored 15 in the format "gptq" depends on the writer. GPTQModel subtracts 0x11111111 from each word,
with borrows between nibbles, and adds it again when loading. Other kernels add one to each nibble, which gives 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...schemes.packing import pack, unpack
from ..source import SourceTensor
from .modules import stream_codes
from .packed_int4 import BITS, CODES, Layout, PackedInt4, Parts
from .settings import AUTOROUND, packing

_PIECE_WORDS = 1 << 18  # words transposed at a time
_SAME = ("checkpoint_format", "format")  # settings of all modules


class GPTQ(PackedInt4):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "gptq"."""

    kind: ClassVar[str] = "gptq"
    WIDTHS = (2, 3, 4, 8)

    @property
    def format(self) -> Any:
        """Return the ``checkpoint_format``, which some versions call ``format``."""
        if str(self._said.get("quant_method")).endswith(AUTOROUND):
            return "gptq" if "gptq" in packing(self._said) else "gptq_v2"
        found = self._said.get("checkpoint_format") or self._said.get("format") or "gptq"
        return found.lower() if isinstance(found, str) else found

    def _symmetric(self, said: Mapping[str, Any]) -> bool:
        return said.get("sym") is True

    def _check_said(self, said: Mapping[str, Any]) -> None:
        if self.format not in ("gptq", "gptq_v2"):
            raise self._refused(f"checkpoint_format {self.format!r}, only 'gptq' and 'gptq_v2' are read here")
        if self._said.get("is_marlin_format"):
            raise self._refused("is_marlin_format, only 'gptq' and 'gptq_v2' are read here")
        for key in _SAME:
            if said.get(key) != self._said.get(key):
                raise self._refused(f"{key} {said.get(key)!r} for some modules, {self._said.get(key)!r} for others")

    def _shape(self, qweight: tuple[int, ...], bits: int) -> tuple[int, int]:
        return qweight[1], qweight[0] * 32 // bits

    def _codes(self, words: np.ndarray, bits: int) -> np.ndarray:
        count, rows = words.shape
        if bits != BITS:
            return stream_codes(np.ascontiguousarray(words.T), bits, count * 32 // bits, f"u{bits}")
        codes = np.empty((rows, count * CODES // 2), np.uint8)
        step = max(64, _PIECE_WORDS // max(count, 1))
        for start in range(0, rows, step):
            # Transposing puts the bytes of a row in place; in each the first code is the lower nibble, not the higher.
            piece = np.ascontiguousarray(words[:, start : start + step].T).view(np.uint8).reshape(-1, codes.shape[1])
            codes[start : start + step] = (piece << BITS) | (piece >> BITS)
        return codes

    def _zeros(self, words: np.ndarray, bits: int) -> np.ndarray:
        if self.format == "gptq_v2":
            return self._unpacked(words, bits)
        meta = self._said.get("meta")
        writer = str(meta.get("quantizer")) if isinstance(meta, dict) else ""
        if "gptqmodel" in writer.lower():
            ones = pack(np.ones(words.shape[1] * 32 // bits, np.uint8), bits, "little").view("<u4")
            return self._unpacked(words.astype(np.uint32) + ones, bits)
        zeros = self._unpacked(words, bits)
        if bits == 8 and (zeros == 255).any():
            raise self._refused("a stored zero point of 255, which is 256 in this format: more than a byte")
        return zeros + np.uint8(1)

    @staticmethod
    def _unpacked(words: np.ndarray, bits: int) -> np.ndarray:
        """Unpack words [G, W] to zero points u8 [N, G]."""
        data = np.ascontiguousarray(words).view(np.uint8)
        return np.ascontiguousarray(unpack(data, bits, data.shape[1] * 8 // bits, "little").T)

    def _ordered(self, parts: Parts, groups: int, columns: int, layout: Layout) -> bool:
        found: SourceTensor | None = parts.get("g_idx")
        if found is None:
            if layout.ordered:
                raise self._error(parts["qweight"], "has no g_idx, which desc_act needs")
            return False
        index = self._values(found)
        if index.size and (index.min() < 0 or index.max() >= groups):
            raise self._error(found, f"names groups {index.min()} to {index.max()}, there are {groups}")
        return bool((index != np.arange(columns) // (layout.group or columns or 1)).any())

    def _hint(self, zero: np.ndarray) -> str:
        if self.format == "gptq" and (zero == 9).all():
            return "; as checkpoint_format 'gptq_v2' they would be: correct it in the config if that is what it is"
        return ""
