"""Finds scales and minima of GGML's blocks for GPTQ, with the searches of ``ggml_encode``, and puts codes into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ggml import GGML
from .ggml_blocks import NO_MINIMA, Found
from .ggml_encode import ENCODERS, Encoder, Find, find
from .ggml_layout import Layout
from .ggml_search import weights_of


@dataclass(frozen=True)
class GGMLQuantizer:
    """Quantize rows of blocks; a span is one block, or the columns of a superblock."""

    layout: Layout
    encoder: Encoder
    how: Find

    @property
    def span(self) -> int:
        return self.layout.block

    @property
    def group(self) -> int:
        return self.encoder.search.size

    @property
    def high(self) -> int:
        low, high = self.encoder.search.codes
        return high - low

    @property
    def book(self) -> np.ndarray | None:
        return self.encoder.search.bounds_and_book

    def find(self, values: np.ndarray, weights: np.ndarray) -> Found:
        search = replace(self.encoder.search, by_value=False)
        return self.how(search, np.ascontiguousarray(values), "f32", weights_of(weights, self.layout.block))

    def parameters(self, found: Found) -> np.ndarray:
        search = self.encoder.search
        factors, offsets = found.factors.astype(np.float32).transpose(1, 2, 0)
        scale, minimum = found.scales.astype(np.float32).T
        nothing = np.zeros_like(factors)
        if search.minima == NO_MINIMA:
            return np.stack([scale * factors, nothing - np.float32(search.codes[0]), nothing])
        return np.stack([scale * factors, nothing, nothing - minimum * offsets])

    def planes(self, codes: np.ndarray, found: Sequence[Found]) -> dict[str, np.ndarray]:
        each = np.hsplit(codes, len(found))
        spans = [replace(one, codes=np.ascontiguousarray(part)) for one, part in zip(found, each, strict=True)]
        return {"blocks": np.concatenate([self.encoder.blocks(self.layout, one) for one in spans], axis=1)}


def ggml_quantizer(scheme: GGML, columns: int, how: Find = find) -> GGMLQuantizer | None:
    """Return the quantizer of a type of block; ``None`` if its scales are not searched for."""
    encoder = ENCODERS.get(scheme.name)
    return None if encoder is None else GGMLQuantizer(scheme.layout, encoder, how)
