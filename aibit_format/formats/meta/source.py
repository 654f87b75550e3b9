"""Reads a Llama as Meta publishes it: ``params.json``, ``consolidated.00.pth`` and on, ``tokenizer.model``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

from .checkpoint import Consolidated, is_directory_of
from .config import KNOWN, REFUSED, config_of, decoder_sizes, intermediate_size
from .params import Params
from .rows import DECODER, MLP, Row
from .tokenizer import NAME, tokenizer_documents

_HEAD, _EMBEDDINGS = "output.weight", "tok_embeddings.weight"


class Meta(Consolidated):
    """Provide the tensors of the directory ``path``, which holds a Llama 1, 2 or 3 without images."""

    kind: ClassVar[str] = "meta"

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a directory; Mistral's name the size of the MLP."""
        return is_directory_of(path) and "hidden_dim" not in Params.of(path)

    @property
    def tied(self) -> bool:
        """Tell whether the embeddings are the head too: it is not there, or the same bytes."""
        return not self.has(_HEAD) or self.same_place(_HEAD, _EMBEDDINGS)

    def rows_of(self) -> Iterable[Row]:
        self.params.check_known(KNOWN, REFUSED)
        return (*DECODER, *MLP)

    def sizes_of(self) -> dict[str, int]:
        sizes = decoder_sizes(self.params)
        vocabulary = self.params.said.get("vocab_size")  # -1 in Llama 1 and 2: as many as the tokenizer has
        count = self.vocabulary() if vocabulary in (None, -1) else self.params.count("vocab_size")
        return sizes | {"vocabulary": count, "intermediate": intermediate_size(self.params)}

    def is_left_out(self, name: str) -> bool:
        return name == _HEAD and self.tied

    def described(self) -> dict[str, bytes]:
        documents, ends = self._tokenizer
        config = config_of(self.params, self.sizes, self.tied) | ends
        return self.with_config(documents, config, ends)

    @property
    def unwanted(self) -> frozenset[str]:
        """Return the document that ``tokenizer.json`` takes the place of."""
        return frozenset({NAME})

    @cached_property
    def _tokenizer(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        return tokenizer_documents(self.path, self.params.flag("use_scaled_rope"), self.sizes["vocabulary"])
