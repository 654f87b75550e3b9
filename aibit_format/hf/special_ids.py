"""Knows where documents hold ids of tokens: which tokens they name, and how they read with other ids.

Ids in lists of what is suppressed, or of words that are forbidden, do not name tokens that a model needs: with a token
gone, they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

New = Callable[[int], int]  # the new id of an old one; -1 if it is gone

# Keys of config.json, generation_config.json and the configs of processors that hold an id, or a list of ids. Those of
# generation_config.json that end so (forced_bos_token_id) do too.
_IDS = re.compile(r"(\w+_)?token_(id|ids|index)")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")  # [id, ...]
_WORDS = ("bad_words_ids",)  # [[id, ...], ...]
_FORCED = ("force_words_ids",)  # the same, or lists of them: what has to be there
_PLACED = ("forced_decoder_ids",)  # [[place, id], ...]
_BIASED = ("sequence_bias",)  # [[[id, ...], bias], ...]
_NAMED = ("lang_to_id", "task_to_id")  # {name: id}
# Documents with such keys, at any depth.
DOCUMENTS = re.compile(r"config\.json|generation_config\.json|\w*processor_config\.json")
# Sizes of a vocabulary in config.json that can be made smaller: of all tokens, and of the first of them.
SIZES = ("vocab_size", "vocab_size_per_layer_input")


def named(value: Any) -> Iterator[int]:
    """Yield the ids of tokens that a parsed document needs, in any of its keys; -1 is none."""
    for key, inner in _items(value):
        if isinstance(inner, (dict, list)) and key not in (*_PLACED, *_LISTS, *_WORDS, *_BIASED):
            yield from named(inner) if not (is_key(key) or key in (*_FORCED, *_NAMED)) else _whole(inner)
        elif key in _PLACED and isinstance(inner, list):
            yield from _whole([pair[1:] for pair in inner if isinstance(pair, list)])
        elif is_key(key) and type(inner) is int and inner >= 0:
            yield inner


def remapped(value: Any, new: New) -> Any:
    """Return a parsed document with new ids of tokens."""
    if isinstance(value, list):
        return [remapped(inner, new) for inner in value]
    if not isinstance(value, dict):
        return value
    return {key: _value(key, inner, new) for key, inner in value.items()}


def _value(key: str, value: Any, new: New) -> Any:
    if value is None:
        return None
    if is_key(key) or key in (*_FORCED, *_NAMED):
        return _mapped(value, new)
    if not isinstance(value, list):
        return remapped(value, new)
    if key in _LISTS:
        return [_mapped(i, new) for i in value if _is_left(i, new)]
    if key in _WORDS:
        return [_mapped(word, new) for word in value if _is_left(word, new)]
    if key in _PLACED:
        return [[place, *_mapped(ids, new)] for place, *ids in value]
    if key in _BIASED:
        return [[_mapped(word, new), bias] for word, bias in value if _is_left(word, new)]
    return remapped(value, new)


def is_key(key: str) -> bool:
    """Tell whether a key of a config holds an id of a token, or a list of such."""
    return _IDS.fullmatch(key) is not None


def _is_left(word: Any, new: New) -> bool:
    return all(new(i) >= 0 for i in _whole(word))


def _mapped(value: Any, new: New) -> Any:
    if type(value) is int:
        return new(value) if value >= 0 else value
    if isinstance(value, list):
        return [_mapped(inner, new) for inner in value]
    if isinstance(value, dict):
        return {key: _mapped(inner, new) for key, inner in value.items()}
    return value


def _whole(value: Any) -> Iterator[int]:
    """Yield the whole numbers in lists and objects, of any depth, that are not negative."""
    if type(value) is int and value >= 0:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _whole(inner)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from (("", inner) for inner in value)
