"""Checks the token ids in documents against the vocabulary of their model.

An id is a row of the embedding. An id beyond its end is an error in the middle of a forward on a CPU; on a GPU it makes
the device unusable for the whole process. So a file with such ids is refused before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import LoadError

# Keys of config.json and generation_config.json that hold one id or several; -1, in old checkpoints, means none.
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the vocabulary size in a parsed ``config.json``, or in its text part; ``None`` if there is none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return part["vocab_size"]
    return None


def check_special_ids(name: str, document: Mapping[str, Any], size: int | None, family: type) -> None:
    """Check the special ids of a parsed ``config.json`` or ``generation_config.json`` against the vocabulary's size.

    Args:
        family: transformers' class of the configuration. Its own defaults are accepted: a checkpoint with a smaller
            vocabulary often still has them (GPT-2's 50256) without meaning them.

    Raises:
        LoadError: names document, key and id.
    """
    for key in _SPECIAL:
        value, usual = document.get(key), getattr(family, key, None)
        for found in value if isinstance(value, list) else [value]:
            if isinstance(found, int) and size is not None and found != usual and not -1 <= found < size:
                raise LoadError(f"{name}: {key} is {found}, and the vocabulary has {size} tokens")


def check_tokenizer(tokenizer: Mapping[str, Any], size: int | None) -> None:
    """Check the ids of a parsed ``tokenizer.json`` against the size of the model's vocabulary.

    Raises:
        LoadError: names the token.
    """
    if size is None:
        return
    for token, found in _ids(tokenizer):
        if isinstance(found, int) and not 0 <= found < size:
            raise LoadError(f"tokenizer.json: token {token!r} has the id {found}, and the vocabulary has {size} tokens")


def _ids(tokenizer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield tokens and ids, as far as the document has the form that the tokenizers library writes."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list) and vocabulary:  # ids are list indices: the last is the largest
        yield vocabulary[-1], len(vocabulary) - 1
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, Mapping):
            yield token.get("content"), token.get("id")
