"""Defines what is asked of a tokenizer that is cut, and finds the one among a model's documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ...container.vocabulary import Kept
from ...errors import SourceError
from ...hf.tokenizer_files import CONVERTED, DOCUMENTS, vocabularies
from .sentencepiece import SentencePiece
from .tokenizer_json import TokenizerJson


class Tokenizer(Protocol):
    """Hold the tokens of a model as one document has them."""

    name: str  # of the document

    @property
    def tokens(self) -> Mapping[str, int]:
        """Return the ids, by what the document calls a token."""
        ...

    @property
    def always(self) -> frozenset[int]:
        """Return the ids of tokens that stay whatever is wanted: special, added, of bytes, around every text."""
        ...

    def parts(self, token: str) -> Iterator[str]:
        """Yield the tokens that this one is joined from, which have to be kept with it."""
        ...

    def spelling(self, kept: frozenset[str]) -> Iterator[str]:
        """Yield the tokens of one character by which words are spelled, if nothing else does that."""
        ...

    def text(self, token: str) -> str | None:
        """Return what a token stands for; ``None`` if that is no text by itself, but some bytes of a character."""
        ...

    def cut(self, kept: Kept) -> bytes:
        """Return the document with the tokens that are kept."""
        ...


def tokenizer_of(documents: Mapping[str, bytes], built: Any = None) -> Tokenizer:
    """Return the tokenizer among a model's documents.

    Args:
        documents: by name.
        built: the tokenizer that transformers has made of them. Of a vocabulary in another form than those that are
            cut, it makes a ``tokenizer.json``.

    Raises:
        SourceError: there is none, or one of a kind that is not cut.
    """
    if CONVERTED in documents:
        return TokenizerJson(documents[CONVERTED])
    models = [name for name in vocabularies(documents) if name.endswith(".model")]
    if len(models) == 1:
        return SentencePiece(models[0], documents[models[0]])
    if (backend := getattr(built, "backend_tokenizer", None)) is not None:
        return TokenizerJson(backend.to_str().encode())
    raise SourceError(
        f"{', '.join(vocabularies(documents)) or 'no vocabulary'}: cannot be cut: only tokenizer.json, "
        "what transformers makes one of, and a model of SentencePiece can; save it with a current transformers first "
        "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
    )


def replaced(documents: Mapping[str, bytes], name: str) -> list[str]:
    """Return the names of the documents that repeat the vocabulary in another form, and would contradict a cut one."""
    repeated = ("merges.txt", "added_tokens.json")
    return [
        each
        for each in documents
        if DOCUMENTS.fullmatch(each) and each != name and (each in repeated or each in vocabularies(documents))
    ]
