"""Reads and cuts ``tokenizer.json``, the file of the tokenizers library: its model, and what names ids around that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ...container import documents
from ...container.vocabulary import Kept
from ...errors import SourceError
from ...hf.tokenizer_files import CONVERTED
from .models import model_of

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"  # what SentencePiece writes for a space


def byte_alphabet() -> dict[str, int]:
    """Return the character that GPT-2 writes for each byte: itself if it is printable Latin-1, else one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


class TokenizerJson:
    """Hold a ``tokenizer.json``.

    Raises:
        SourceError: it has a model that is not cut, or is none.
    """

    name = CONVERTED

    def __init__(self, data: bytes) -> None:
        self._document: dict[str, Any] = documents.parse_json(self.name, data)
        self._model = model_of(self._document)
        added = self._document.get("added_tokens") or []
        if not isinstance(added, list) or not all(
            isinstance(each, dict) and type(each.get("id")) is int and isinstance(each.get("content"), str)
            for each in added
        ):
            raise SourceError(f"{self.name}: added_tokens is no list of tokens with ids")
        self._added = {each["content"]: each["id"] for each in added}
        self._has_byte_characters = any(
            _has_type(self._document.get(part), "ByteLevel") for part in ("pre_tokenizer", "decoder", "normalizer")
        )

        self.tokens = {**self._model.tokens, **self._added}
        self.always = self._always()

    def _always(self) -> frozenset[int]:
        """Return the ids of added tokens, of those for bytes, and of those that a text is put between."""
        tokens = self._model.tokens
        found = {*self._added.values(), *self._model.always, *_ids_of(self._document.get("post_processor"))}
        if self._model.has_bytes:
            found |= {i for token, i in tokens.items() if _BYTE.fullmatch(token)}
        if self._has_byte_characters:
            found |= {tokens[char] for char in _ALPHABET if char in tokens}
        return frozenset(found)

    def parts(self, token: str) -> Iterator[str]:
        """Yield the tokens that a token of BPE is joined from."""
        if token not in self._added:
            yield from self._model.parts(token)

    def spelling(self, kept: frozenset[str]) -> Iterator[str]:
        """Yield tokens of one character, alone and inside a word: those of ASCII, and those in tokens that are kept."""
        if self._model.has_bytes or self._has_byte_characters:
            return
        prefix = self._model.prefix
        suffix = str(self._model.document.get("end_of_word_suffix") or "")
        chars = {chr(code) for code in range(33, 127)} | {_SPACE}
        chars |= {char for token in kept for char in token.removeprefix(prefix).removesuffix(suffix)}
        for char in sorted(chars):
            yield from {char, prefix + char, char + suffix} & self._model.tokens.keys()

    def text(self, token: str) -> str | None:
        """Return what a token stands for."""
        if token in self._added:
            return token
        if self._has_byte_characters:
            if not all(char in _ALPHABET for char in token):
                return token
            try:
                return bytes(_ALPHABET[char] for char in token).decode()
            except UnicodeDecodeError:
                return None
        return token.removeprefix(self._model.prefix)

    def cut(self, kept: Kept) -> bytes:
        """Return the document with the tokens that are kept, under new ids."""
        ids = list(dict.fromkeys([*self._model.tokens.values(), *self._added.values()]))
        new = {i: place for i, place in zip(ids, kept.new(ids).tolist(), strict=True) if place >= 0}
        document = {**self._document, "model": self._model.cut(new)}
        if self._added:
            document["added_tokens"] = [{**each, "id": new[each["id"]]} for each in self._document["added_tokens"]]
        if isinstance(padding := document.get("padding"), dict) and padding.get("pad_id") in new:
            document["padding"] = {**padding, "pad_id": new[padding["pad_id"]]}
        document["post_processor"] = _processed(document.get("post_processor"), new)
        return (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _has_type(part: Any, kind: str) -> bool:
    """Tell whether a part of the document, or one inside it, is of a type."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_has_type(inner, kind) for inner in part.values())
    return isinstance(part, list) and any(_has_type(inner, kind) for inner in part)


def _ids_of(processor: Any) -> Iterator[int]:
    """Yield the ids of tokens that a post-processor puts around texts."""
    found: set[int] = set()
    _processed(processor, _Seen(found))
    yield from found


class _Seen(dict[int, int]):
    """Keep the keys that are asked for, each of which stands for itself."""

    def __init__(self, found: set[int]) -> None:
        super().__init__()
        self._found = found

    def __missing__(self, key: int) -> int:
        self._found.add(key)
        return key


def _processed(processor: Any, new: dict[int, int]) -> Any:
    """Return a post-processor with new ids: those of TemplateProcessing, BertProcessing, RobertaProcessing."""
    if not isinstance(processor, dict):
        return processor
    found = dict(processor)
    for key in ("cls", "sep"):
        if isinstance(pair := found.get(key), list) and len(pair) == 2 and type(pair[1]) is int:
            found[key] = [pair[0], new[pair[1]]]
    if isinstance(special := found.get("special_tokens"), dict):
        found["special_tokens"] = {
            name: {**each, "ids": [new[i] for i in each["ids"]]} for name, each in special.items()
        }
    if isinstance(inner := found.get("processors"), list):
        found["processors"] = [_processed(each, new) for each in inner]
    return found
