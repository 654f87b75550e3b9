"""Reads an AWQ checkpoint: a Hugging Face directory as AutoAWQ writes it in its version "gemm".

``qweight`` i32 [K, N / 8]: the nibbles of word [k, w], from the lowest, are the codes of rows 8 w + 0, 2, 4, 6, 1, 3,
5, 7 in column k. ``qzeros`` has the zero points in the same order, unchanged. Columns are in the order of their
groups. Layout and arithmetic are those of ``WQLinear_GEMM`` in https://github.com/casper-hansen/AutoAWQ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .packed_int4 import BITS, CODES, Layout, PackedInt4, Parts, unpack

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_EVEN = np.uint32(0x0F0F0F0F)  # nibbles 0, 2, 4 and 6 of a word, one in each byte
_PIECE_WORDS = 64  # words of a row that are unpacked at a time: a cache line or more of each row


class AWQ(PackedInt4):
    """Provide the tensors of the directory ``path``, whose ``quant_method`` is "awq"."""

    kind: ClassVar[str] = "awq"

    def _symmetric(self, said: Mapping[str, Any]) -> bool:
        return said.get("zero_point") is False

    def _check_said(self, said: Mapping[str, Any]) -> None:
        version = said.get("version") or said.get("format") or "gemm"
        if str(version).lower() != "gemm" or said.get("backend") == "llm-awq":
            raise self._refused(f"version {version!r}, backend {said.get('backend')!r}; only 'gemm' is read here")

    def _shape(self, qweight: tuple[int, ...], bits: int) -> tuple[int, int]:
        return qweight[1] * CODES, qweight[0]

    def _codes(self, words: np.ndarray, bits: int) -> np.ndarray:
        columns, count = words.shape
        codes = np.empty((count, CODES, columns // 2), np.uint8)
        for start in range(0, count, _PIECE_WORDS):
            piece = words[:, start : start + _PIECE_WORDS].astype("<u4")
            first, second = piece[::2], piece[1::2]  # the two columns of a byte, of which the first is the high nibble
            even = ((first & _EVEN) << BITS) | (second & _EVEN)
            odd = (first & ~_EVEN) | ((second >> BITS) & _EVEN)
            for rows, pairs in ((ORDER[::2], even), (ORDER[1::2], odd)):
                places = pairs.view(np.uint8).reshape(*pairs.shape, 4)
                for place, row in enumerate(rows):
                    codes[start : start + _PIECE_WORDS, row] = places[:, :, place].T
        return codes.reshape(-1, columns // 2)

    def _zeros(self, words: np.ndarray, bits: int) -> np.ndarray:
        return unpack(words, ORDER)

    def _ordered(self, parts: Parts, groups: int, columns: int, layout: Layout) -> bool:
        qweight = parts["qweight"]
        if "g_idx" in parts:
            raise self._error(parts["g_idx"], "belongs to GPTQ, not to AWQ")
        if layout.group and columns % layout.group:
            raise self._error(qweight, f"has {columns} columns, not a multiple of group_size {layout.group}")
        module = qweight.name.removesuffix(".qweight")
        listed = self._said.get("modules_to_not_convert")
        for kept in listed if isinstance(listed, list) else ():
            if re.search(rf"(^|\.){re.escape(str(kept))}(\.|$)", module):
                raise self._error(qweight, f"is quantized, but modules_to_not_convert names {kept!r}")
        return False
