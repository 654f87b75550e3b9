"""Reads a model as Mistral publishes it: ``params.json``, consolidated weights, ``tekken.json`` or SentencePiece.

In fp8 checkpoints a weight is f8_e4m3 with ``qscale_weight``, one number: weight = code * scale. What is said of
activations (``qscale_act``) is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

from ...errors import SourceError
from ..fp8.scales import E4M3
from ..meta.checkpoint import Consolidated, is_directory_of
from ..meta.params import Params
from ..meta.rows import DECODER, MLP, Row
from .config import check, config_of, merges_patches, sizes_of
from .rows import EXPERTS, MERGER, VISION, inside
from .tokenizer import SENTENCEPIECE, TEKKEN, tokenizer_documents


class Mistral(Consolidated):
    """Provide the tensors of the directory ``path``: Mistral, Mixtral, Ministral 3, Mistral 3 or Pixtral.

    Raises:
        SourceError: as the base class; or a quantization is said that no weight has.
    """

    kind: ClassVar[str] = "mistral"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        quantized = any(tensor.scheme is not None for tensor in self.tensors.values())
        if "quantization" in self.params and not quantized:
            raise SourceError(f"{self.params.where}: quantization is said, and none of {len(self.tensors)} is {E4M3}")

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a directory; Meta's do not name the size of the MLP."""
        return is_directory_of(path) and "hidden_dim" in Params.of(path)

    def rows_of(self) -> Iterable[Row]:
        check(self.params)
        decoder = (*DECODER, *(EXPERTS if "moe" in self.params else MLP))
        if "vision_encoder" not in self.params:
            return decoder
        return (*inside(decoder), *VISION, *(MERGER if merges_patches(self.params) else ()))

    def sizes_of(self) -> dict[str, int]:
        return sizes_of(self.params)

    def described(self) -> dict[str, bytes]:
        documents, ends = self._tokenizer
        config: dict[str, Any] = config_of(self.params, self.sizes) | ends
        if "text_config" in config:
            config["text_config"] |= ends
        return self.with_config(documents, config, ends)

    @property
    def unwanted(self) -> frozenset[str]:
        """Return documents that others take the place of.

        With tekken.json beside it, transformers takes another tokenizer where mistral-common is installed.
        """
        return frozenset({TEKKEN, SENTENCEPIECE})

    @cached_property
    def _tokenizer(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        return tokenizer_documents(self.path, self.sizes["vocabulary"])
