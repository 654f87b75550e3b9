"""Token ids of documents, against the vocabulary of the model that they go to.

An id is a row of the embedding. On a CPU one beyond its end is an error in the middle of a forward, on a GPU it takes
the whole process's device down; so a file that has such ids is refused before anything is built of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import LoadError

# Of config.json and generation_config.json: an id, or several. -1 stands for none, as it does in old checkpoints.
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """What a parsed ``config.json`` says of its vocabulary, or of its text part's; ``None`` if it says nothing."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return part["vocab_size"]
    return None


def check_special_ids(name: str, document: Mapping[str, Any], size: int | None, family: type) -> None:
    """Compare the special ids of a parsed ``config.json`` or ``generation_config.json`` with the vocabulary's size.

    Args:
        family: transformers' class of the configuration. Its own defaults pass: a checkpoint with a smaller vocabulary
            often still has them (GPT-2's 50256), and nobody meant them.

    Raises:
        LoadError: it names document, key and id.
    """
    for key in _SPECIAL:
        value, usual = document.get(key), getattr(family, key, None)
        for found in value if isinstance(value, list) else [value]:
            if isinstance(found, int) and size is not None and found != usual and not -1 <= found < size:
                raise LoadError(f"{name}: {key} is {found}, and the vocabulary has {size} tokens")


def check_tokenizer(tokenizer: Mapping[str, Any], size: int | None) -> None:
    """Compare the ids of a parsed ``tokenizer.json`` with the size of the model's vocabulary.

    Raises:
        LoadError: it names the token.
    """
    if size is None:
        return
    for token, found in _ids(tokenizer):
        if isinstance(found, int) and not 0 <= found < size:
            raise LoadError(f"tokenizer.json: token {token!r} has the id {found}, and the vocabulary has {size} tokens")


def _ids(tokenizer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Token and id, as far as the document has the form that the library tokenizers writes."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list) and vocabulary:  # ids are places: the last is the largest
        yield vocabulary[-1], len(vocabulary) - 1
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, Mapping):
            yield token.get("content"), token.get("id")
