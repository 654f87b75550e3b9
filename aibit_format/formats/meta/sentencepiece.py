"""Reads a SentencePiece model, and makes of it the documents that transformers loads, without other libraries.

The file is one message of protobuf, ``ModelProto`` of ``sentencepiece_model.proto``: pieces with scores and kinds, and
how it was trained. Of a model of BPE the pieces with the best score are joined first, as llama.cpp does it with what a
GGUF file has of one; so the documents are made by the same code.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ...errors import SourceError
from ..gguf.tokenizer_in import documents_of
from ..protobuf import fields as _message
from .ranks import LARGEST_TOKEN, MOST_TOKENS

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _BPE = 3, 2  # of the trainer
_CHARACTERS, _PREFIX, _SHORTENED = 2, 3, 4  # of the normalizer
_IDS = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}  # of the trainer: field, and default
_NORMAL = 1


def sentencepiece_documents(data: bytes, rows: int, where: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Make the documents, and what ``config.json`` says of tokens that begin and end a text.

    Args:
        data: the model.
        rows: of the embeddings.
        where: its path, for messages.

    Raises:
        SourceError: it is damaged, no model of BPE over unchanged text, or has more pieces than the embeddings rows.
    """
    try:
        fields = _fields(data)
        pieces = [dict(_fields(value)) for number, value in fields if number == _PIECES]
        trainer = dict(_fields(next((value for number, value in fields if number == _TRAINER), b"")))
        normalizer = dict(_fields(next((value for number, value in fields if number == _NORMALIZER), b"")))
        texts = [_text(piece[_TEXT]).decode() for piece in pieces]
        scores = [struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0] for piece in pieces]
        kinds = [int(piece.get(_KIND, _NORMAL)) for piece in pieces]
        if not 0 < len(pieces) <= MOST_TOKENS or max(map(len, texts)) > LARGEST_TOKEN or max(kinds) > 255:
            raise ValueError(f"{len(pieces)} pieces, or one that is too long or of an unknown kind")
        known = trainer.get(_MODEL_TYPE, 1), _text(normalizer.get(_CHARACTERS, b"")), normalizer.get(_SHORTENED, 1)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise SourceError(f"{where}: no SentencePiece model, or truncated: {error}") from error
    if known != (_BPE, b"", 0):
        raise SourceError(
            f"{where}: SentencePiece of type {known[0]} that changes text before it cuts it; only BPE (2) of unchanged "
            "text is read, which Llama and Mistral have"
        )
    ids = {name: _signed(trainer.get(field, usual)) for name, (field, usual) in _IDS.items()}
    metadata: dict[str, Any] = {
        "model": "llama", "tokens": texts, "scores": np.array(scores, "<f4"), "token_type": np.array(kinds),
        "add_space_prefix": bool(normalizer.get(_PREFIX, 1)), "add_bos_token": ids["bos"] >= 0,
        **{f"{name}_token_id": i for name, i in ids.items() if i >= 0},
    }  # fmt: skip
    try:
        documents = documents_of({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, rows, None)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error
    return documents, {f"{name}_token_id": ids[name] for name in ("bos", "eos") if ids[name] >= 0}


def _fields(data: Any) -> list[tuple[int, Any]]:
    return [(field.number, field.value) for field in _message(data)]


def _text(value: Any) -> bytes:
    """Return the bytes of a field; those of a number would be that many zeros."""
    if not isinstance(value, (bytes, memoryview)):
        raise ValueError("a number in the place of text")
    return bytes(value)


def _signed(value: int) -> int:
    """Return an integer that is stored as if it had no sign."""
    return value - (1 << 64) if value >> 63 else value
