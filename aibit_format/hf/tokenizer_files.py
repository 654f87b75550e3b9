"""Knows which documents transformers builds a tokenizer from, and why a model has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..container.documents import OF_TOKENIZERS, parse_json

CONVERTED = "tokenizer.json"  # of the tokenizers library: the one that is also complete
# Nothing else is put where transformers looks for a tokenizer: an index of shards, for one, names files, and classes
# other than tokenizers open them.
DOCUMENTS = re.compile(OF_TOKENIZERS, re.VERBOSE)
# Any of these makes a tokenizer. Names that end in one of them count too (qwen.tiktoken).
_VOCABULARIES = (
    CONVERTED, "vocab.json", "vocab.txt", ".model", "tekken.json", ".tiktoken", "source.spm", "vocab-src.json",
    "dict.txt", "prophetnet.tokenizer", "byte_maps.json", "bpe.codes",
)  # fmt: skip
# Classes of transformers whose vocabulary is computed: tokens are bytes or code points.
WITHOUT_VOCABULARY = frozenset({"ByT5Tokenizer", "CanineTokenizer", "DiaTokenizer", "PerceiverTokenizer"})

# Where a source that could not make a tokenizer says why: a key of this document.
REASON_DOCUMENT, REASON = "gguf.json", "aibit.no_tokenizer"

Documents = Mapping[str, bytes] | Mapping[str, memoryview]


def vocabularies(documents: Documents) -> list[str]:
    """Return the names of the documents that hold a vocabulary."""
    return [name for name in documents if name.endswith(_VOCABULARIES)]


def why_no_tokenizer(documents: Documents) -> str | None:
    """Return why no tokenizer can be built from these documents; ``None`` if one can.

    Raises:
        FormatError: a document that would tell is not JSON.
    """
    named = _parsed(documents, "tokenizer_config.json").get("tokenizer_class")
    if vocabularies(documents) or (isinstance(named, str) and named in WITHOUT_VOCABULARY):
        return None
    reason = _parsed(documents, REASON_DOCUMENT).get(REASON)
    return f"holds no tokenizer: {reason}" if isinstance(reason, str) else "holds no tokenizer"


def _parsed(documents: Documents, name: str) -> Mapping[str, Any]:
    if name not in documents:
        return {}
    value = parse_json(name, documents[name])
    return value if isinstance(value, dict) else {}
