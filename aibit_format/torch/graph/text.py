"""Turns texts into ids and back by the tokenizer of a file, without transformers."""

from __future__ import annotations

from ...errors import LoadError, MissingPackageError, told_by
from ...file.sharded_reader import Opened

_DOCUMENT = "tokenizer.json"


class Texts:
    """Encodes and decodes by the ``tokenizer.json`` of a file."""

    def __init__(self, file: Opened) -> None:
        """Read the tokenizer.

        Raises:
            LoadError: the file has none, or the library cannot read it.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingPackageError("a tokenizer needs tokenizers: pip install tokenizers") from error
        if _DOCUMENT not in file.documents:
            raise LoadError(f"{file.path}: holds no {_DOCUMENT}; run it without --graph")
        file.check_document(_DOCUMENT)
        try:
            self._tokenizer = Tokenizer.from_buffer(bytes(file.documents[_DOCUMENT]))
        except Exception as error:  # the library raises Exception itself
            raise LoadError(f"{file.path}: {_DOCUMENT} cannot be read: {told_by(error)}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with those that the tokenizer puts around it."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._tokenizer.decode(ids)
