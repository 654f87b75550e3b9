"""Checks the token ids in documents against the vocabulary of their model.

An id is a row of the embedding. An id beyond its end is an error in the middle of a forward on a CPU; on a GPU it makes
the device unusable for the whole process. So a file with such ids is refused before anything is built from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import LoadError

# Keys of config.json and generation_config.json that hold one id or several; -1, in old checkpoints, means none.
_FED = ("bos_token_id", "decoder_start_token_id")  # a text begins with them
_COMPARED = ("eos_token_id", "pad_token_id")  # a text ends with them, or they fill up what is masked


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the vocabulary size in a parsed ``config.json``, or in its text part; ``None`` if there is none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return part["vocab_size"]
    return None


def check_special_ids(name: str, document: Mapping[str, Any], size: int | None, family: type) -> None:
    """Check the special ids of a parsed ``config.json`` or ``generation_config.json`` against the vocabulary's size.

    An id that only ends a text, or pads one, is often one past the embedding, as a token for padding is added to the
    tokenizer alone. Of that is warned.

    Args:
        family: transformers' class of the configuration. Its own defaults are accepted: a checkpoint with a smaller
            vocabulary often still has them (GPT-2's 50256) without meaning them.

    Raises:
        LoadError: names document, key and id.
    """
    for key in (*_FED, *_COMPARED):
        value, usual = document.get(key), getattr(family, key, None)
        for found in value if isinstance(value, list) else [value]:
            if found is not None and type(found) is not int:
                raise LoadError(f"{name}: {key} is {str(found)[:80]!r}, not a token id")
            if found is None or size is None or found == usual or -1 <= found < size:
                continue
            if key in _FED or found < 0:
                raise LoadError(f"{name}: {key} is {found}, and the vocabulary has {size} tokens")
            warnings.warn(f"{name}: {key} is {found}, and the vocabulary has {size} tokens", stacklevel=4)


def check_tokenizer(tokenizer: Mapping[str, Any], size: int | None) -> None:
    """Check the ids of a parsed ``tokenizer.json`` against the size of the model's vocabulary.

    Added tokens may have the ids that follow the vocabulary: one for padding, or for images, often has no row in the
    embedding. ``check_built`` warns of them.

    Raises:
        LoadError: names the token.
    """
    if size is None:
        return
    _check_ids("tokenizer.json", _ids(tokenizer), size)
    added = tokenizer.get("added_tokens")
    found = [each for each in added if isinstance(each, Mapping)] if isinstance(added, list) else []
    _check_ids("tokenizer.json", [(each.get("content"), each.get("id")) for each in found], size, len(found))


def check_added_tokens(name: str, document: Mapping[str, Any], size: int | None) -> None:
    """Check the ids of a parsed ``added_tokens.json``, or of the added tokens in a ``tokenizer_config.json``.

    Raises:
        LoadError: names the document and the token.
    """
    added: Any = document.get("added_tokens_decoder") if name == "tokenizer_config.json" else document
    if added is None:
        return
    if not isinstance(added, Mapping):
        raise LoadError(f"{name}: added tokens are a JSON {type(added).__name__}, not an object")
    ids = list(added.items())
    if name == "tokenizer_config.json":
        ids = []
        for key, token in added.items():
            if not (key.isascii() and key.isdigit() and len(key) < 19 and isinstance(token, Mapping)):
                raise LoadError(f"{name}: added_tokens_decoder: {key[:80]!r} is not an id with a token")
            ids.append((token.get("content"), int(key)))
    if size is not None:
        _check_ids(name, ids, size, len(ids))


def check_built(tokenizer: Any, size: int | None) -> None:
    """Check the ids that a built tokenizer gives every text, and those of its special tokens.

    transformers gives a special token that is not in the vocabulary the next id, which may have no row in the
    embedding. Other tokens beyond the vocabulary, such as one for padding or for images, are only warned of.

    Raises:
        LoadError: names the id.
    """
    if size is None:
        return
    try:
        always = tokenizer("")["input_ids"]
    except Exception:  # some take more than a text
        always = []
    ids = [("of every text", found) for found in always]
    ids += [(name, getattr(tokenizer, f"{name}_id", None)) for name in _IN_TEXTS]
    _check_ids("the tokenizer", ids, size)
    if len(tokenizer) > size:
        warnings.warn(
            f"the tokenizer has {len(tokenizer)} tokens and the model's vocabulary {size}: a text with one of the last "
            f"{len(tokenizer) - size} cannot be computed",
            stacklevel=3,
        )


_IN_TEXTS = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token")


def _check_ids(name: str, ids: Iterable[tuple[Any, Any]], size: int, beyond: int = 0) -> None:
    """Raise LoadError if an id is not below ``size``, or not among the ``beyond`` that follow it."""
    for token, found in ids:
        if isinstance(found, int) and not 0 <= found < size + beyond:
            raise LoadError(
                f"{name}: token {str(token)[:80]!r} has the id {found}, and the vocabulary has {size} tokens"
            )


def _processed(processor: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the tokens and ids that a post-processor puts around every text."""
    if not isinstance(processor, Mapping):
        return
    for key in ("cls", "sep"):  # of BertProcessing and RobertaProcessing
        if isinstance(pair := processor.get(key), list) and len(pair) == 2:
            yield pair[0], pair[1]
    special = processor.get("special_tokens")  # of TemplateProcessing
    for name, token in special.items() if isinstance(special, Mapping) else ():
        ids = token.get("ids") if isinstance(token, Mapping) else None
        for found in ids if isinstance(ids, list) else ():
            yield name, found
    inner = processor.get("processors")  # of Sequence
    for each in inner if isinstance(inner, list) else ():
        yield from _processed(each)


def _ids(tokenizer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the tokens that texts are made of, with ids, as far as the document has the usual form."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list) and vocabulary:  # ids are list indices: the last is the largest
        yield vocabulary[-1], len(vocabulary) - 1
    yield from _processed(tokenizer.get("post_processor"))
