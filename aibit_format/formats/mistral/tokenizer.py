"""Turns Mistral's ``tekken.json`` into ``tokenizer.json``, and finds its SentencePiece models by their names.

tekken.json has byte strings in the order of their ranks, more than are used; the special tokens have the first ids. As
``MistralConverter`` of ``transformers.integrations.mistral``, and with the token that mistral-common begins texts with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from ...container.documents import parse_json
from ...container.layout import MAX_DOCUMENT
from ...errors import FormatError, SourceError
from ..files import read_file
from ..meta.ranks import LARGEST_TOKEN, MOST_TOKENS, decoded, document, tokenizer_json
from ..meta.sentencepiece import sentencepiece_documents

TEKKEN, SENTENCEPIECE = "tekken.json", "tokenizer.model"
_VERSIONED = re.compile(r"tokenizer\.model\.v(\d{1,3})")
_BEGIN = "<s>"
_NAMED = {"bos": _BEGIN, "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_FILLER = "<SPECIAL_{}>"
# Of files from before they listed them: ``DEPRECATED_SPECIAL_TOKENS`` of mistral-common.
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_LONGEST_PATTERN = 1 << 12


def tokenizer_documents(folder: str, rows: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Make the documents of a tokenizer, and what ``config.json`` says of tokens that begin and end a text.

    Args:
        folder: that of the tokenizer; without one there are no documents.
        rows: of the embeddings.

    Raises:
        SourceError: it is damaged, or has more tokens than the embeddings.
    """
    if os.path.lexists(os.path.join(folder, TEKKEN)):
        return _tekken(os.path.join(folder, TEKKEN), rows)
    names = os.listdir(folder)
    versions = sorted((int(found[1]), found[0]) for name in names if (found := _VERSIONED.fullmatch(name)))
    name = SENTENCEPIECE if SENTENCEPIECE in names else versions[-1][1] if versions else None
    if name is None:
        return {}, {}
    path = os.path.join(folder, name)
    return sentencepiece_documents(read_file(path, MAX_DOCUMENT), rows, path)


def _tekken(path: str, rows: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    try:
        found = parse_json(TEKKEN, read_file(path, MAX_DOCUMENT))
    except FormatError as error:
        raise SourceError(f"{path}: {error}") from error
    said = found.get("config") if isinstance(found, Mapping) else None
    if not isinstance(said, Mapping):
        raise SourceError(f"{path}: has no object 'config', as tekken.json has")
    pattern = said.get("pattern")
    if not _is_text(pattern, _LONGEST_PATTERN):
        raise SourceError(f"{path}: pattern is {repr(pattern)[:80]}, expected a regular expression")
    special = _special(found.get("special_tokens"), said.get("default_num_special_tokens"), path)
    tokens = _tokens(found.get("vocab"), said.get("default_vocab_size"), len(special), path)
    if len(special) + len(tokens) > rows:
        raise SourceError(f"{path}: {len(special) + len(tokens)} tokens, the embeddings have {rows} rows")
    made = tokenizer_json(tokens, len(special), special, pattern, _BEGIN, path)
    named = {name: text for name, text in _NAMED.items() if text in special}
    config = {"tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": text for name, text in named.items()}
    documents = {"tokenizer.json": document(made), "tokenizer_config.json": document(config)}
    return documents, {f"{name}_token_id": special[text] for name, text in named.items() if name != "unk"}


def _special(listed: Any, count: Any, path: str) -> dict[str, int]:
    """Return the special tokens and their ids; those without a name are numbered."""
    names = list(_UNLISTED)
    if listed is not None:
        entries = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
        if not entries or sorted(str(each.get("rank")) for each in entries) != sorted(map(str, range(len(listed)))):
            raise SourceError(f"{path}: ranks of special_tokens are not 0, 1 and on, each once")
        if wrong := [each for each in entries if not _is_text(each.get("token_str"), LARGEST_TOKEN)]:
            raise SourceError(f"{path}: special_tokens: {repr(wrong[0])[:80]} has no text as token_str")
        names = [each["token_str"] for each in sorted(entries, key=lambda each: int(each["rank"]))]
    if count is not None and (type(count) is not int or not len(names) <= count <= MOST_TOKENS):
        raise SourceError(f"{path}: default_num_special_tokens is {repr(count)[:80]}, there are {len(names)}")
    names += [_FILLER.format(i) for i in range(len(names), count or 0)]
    found = {name: i for i, name in enumerate(names)}
    if len(found) != len(names) or _BEGIN not in found:
        raise SourceError(f"{path}: {_BEGIN!r} is no special token, or one is there twice")
    return found


def _is_text(value: Any, most: int) -> TypeGuard[str]:
    """Tell whether a JSON value is text of so many characters, of which none is half of another."""
    return isinstance(value, str) and 0 < len(value) <= most and not any("\ud800" <= each <= "\udfff" for each in value)


def _tokens(listed: Any, size: Any, special: int, path: str) -> list[bytes]:
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_TOKENS:
        raise SourceError(f"{path}: vocab is no list of 1 to {MOST_TOKENS} tokens")
    if size is not None and (type(size) is not int or not special < size <= special + len(listed)):
        raise SourceError(
            f"{path}: default_vocab_size is {repr(size)[:80]}, {special} are special and {len(listed)} more"
        )
    tokens = []
    for rank, entry in enumerate(listed if size is None else listed[: size - special]):
        text = entry.get("token_bytes") if isinstance(entry, Mapping) and entry.get("rank", rank) == rank else None
        if not isinstance(text, str):
            raise SourceError(f"{path}: vocab: {repr(entry)[:80]} is no token of rank {rank}")
        tokens.append(decoded(text, f"{path}: rank {rank}"))
    return tokens
