"""Turns the ranks of byte strings, in which tiktoken and tekken have a vocabulary, into a ``tokenizer.json``.

Such a vocabulary has no merges: of the pairs of neighbours in a text that make a token, the one of lowest rank is
joined first. As merges that is every way to cut a token in two tokens, in the order of ranks. The result is that of
``TikTokenConverter`` and ``MistralConverter`` in transformers, and begins texts with a token of its own, as the makers'
own libraries do.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import SourceError

LARGEST_TOKEN = 1 << 10  # bytes; those of real vocabularies have at most 256
MOST_TOKENS = 1 << 21


def decoded(text: str | bytes, where: str) -> bytes:
    """Decode a token from base64.

    Raises:
        SourceError: it is no base64, empty, or too long.
    """
    try:
        token = base64.b64decode(text, validate=True) if len(text) <= 2 * LARGEST_TOKEN else b""
    except (binascii.Error, ValueError) as error:
        raise SourceError(f"{where}: {repr(text)[:80]} is no token in base64: {error}") from error
    if not 0 < len(token) <= LARGEST_TOKEN:
        raise SourceError(f"{where}: {repr(text)[:80]} is a token of no bytes, or of more than {LARGEST_TOKEN}")
    return token


def tokenizer_json(
    tokens: Sequence[bytes], first: int, special: Mapping[str, int], pattern: str, begin: str, where: str
) -> dict[str, Any]:
    """Make a ``tokenizer.json``.

    Args:
        tokens: by rank.
        first: the id of rank 0.
        special: tokens that are matched literally, and their ids.
        pattern: the regular expression that cuts a text.
        begin: the special token that comes before every text.
        where: for messages.

    Raises:
        SourceError: a token is there twice.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        twice = next(token for rank, token in enumerate(tokens) if ranks[token] != rank)
        raise SourceError(f"{where}: {twice[:60]!r} is there twice")
    characters = _characters()
    texts = [token.decode("latin-1").translate(characters) for token in tokens]
    vocabulary = {text: first + rank for rank, text in enumerate(texts)}
    if clash := next((text for text in special if text in vocabulary), None):
        raise SourceError(f"{where}: {clash[:60]!r} is a special token, and one of the others")
    vocabulary |= special
    single = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for text, i in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]},
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": single + pair,
            "special_tokens": {begin: {"id": begin, "ids": [special[begin]], "tokens": [begin]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocabulary, "merges": list(_merges(tokens, texts, ranks)),
        },
    }  # fmt: skip


def document(value: Mapping[str, Any]) -> bytes:
    """Return the text of a JSON document."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _merges(tokens: Sequence[bytes], texts: Sequence[str], ranks: Mapping[bytes, int]) -> Iterable[tuple[str, str]]:
    for token in tokens:
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        found = sorted((ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks)
        yield from ((texts[left], texts[right]) for left, right in found)


def _characters() -> dict[int, str]:
    """Map bytes to the characters that stand for them in byte-level BPE, as GPT-2 chose them: all can be seen."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(unseen)}
