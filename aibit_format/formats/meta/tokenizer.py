"""Turns Llama's ``tokenizer.model`` into documents that transformers loads.

Llama 1 and 2 have a SentencePiece model. Llama 3 has lines of a token in base64 and its rank;
the special tokens that follow, 256 of them, are only in Meta's program (``Tokenizer`` of ``llama_models.llama3``), and
here. Those of 3.1 and later have other names than those of 3.
"""

from __future__ import annotations

import os
from typing import Any

from ...container.layout import MAX_DOCUMENT
from ...errors import SourceError
from ..files import read_file
from .ranks import MOST_TOKENS, decoded, document, tokenizer_json
from .sentencepiece import sentencepiece_documents

NAME = "tokenizer.model"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPECIAL = 256
_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_ENDS = (_END, "<|eom_id|>", "<|eot_id|>")  # of a text, of a message, of a turn
_RESERVED = "<|reserved_special_token_{}|>"
_NAMED_3 = (_BEGIN, _END, None, None, None, None, "<|start_header_id|>", "<|end_header_id|>", None, "<|eot_id|>")
_NAMED_3_1 = (
    _BEGIN, _END, None, None, "<|finetune_right_pad_id|>", None, "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip


def tokenizer_documents(folder: str, later: bool, rows: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Make the documents, and what ``config.json`` says of tokens that begin and end a text.

    Args:
        folder: that of ``tokenizer.model``; without it there are no documents.
        later: whether it is Llama 3.1 or later.
        rows: of the embeddings.

    Raises:
        SourceError: it is neither kind, damaged, or has more tokens than the embeddings.
    """
    path = os.path.join(folder, NAME)
    if not os.path.lexists(path):
        return {}, {}
    text = read_file(path, MAX_DOCUMENT)
    if text[:1] == b"\n":  # the first field of the first piece
        return sentencepiece_documents(text, rows, path)
    tokens = _ranked(text, path)
    if len(tokens) + _SPECIAL > rows:
        raise SourceError(f"{path}: {len(tokens)} tokens and {_SPECIAL} special ones, the embeddings have {rows} rows")
    special = {name: len(tokens) + i for i, name in enumerate(_special(_NAMED_3_1 if later else _NAMED_3))}
    made = tokenizer_json(tokens, 0, special, _PATTERN, _BEGIN, path)
    config = {
        "tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": False, "bos_token": _BEGIN,
        "eos_token": _END, "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    ends = [special[name] for name in _ENDS if name in special]
    documents = {"tokenizer.json": document(made), "tokenizer_config.json": document(config)}
    return documents, {"bos_token_id": special[_BEGIN], "eos_token_id": ends}


def _special(named: tuple[str | None, ...]) -> list[str]:
    """Return all special tokens; those without a name of their own are numbered."""
    number, found = 0, []
    for name in (*named, *(None,) * (_SPECIAL - len(named))):
        found.append(name or _RESERVED.format(number))
        number += name is None
    return found


def _ranked(text: bytes, path: str) -> list[bytes]:
    lines = text.splitlines()
    if not 0 < len(lines) <= MOST_TOKENS:
        raise SourceError(f"{path}: {len(lines)} lines, expected 1 to {MOST_TOKENS}")
    tokens = []
    for number, line in enumerate(lines):
        token, _, rank = line.partition(b" ")
        if rank != str(number).encode():
            raise SourceError(
                f"{path}: line {number + 1} is {line[:60]!r}: neither SentencePiece, nor a token and its rank"
            )
        tokens.append(decoded(token, f"{path}: line {number + 1}"))
    return tokens
