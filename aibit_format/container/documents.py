"""Defines the documents that a model file carries, and checks their contents.

A document is data. Keys that make a library fetch or run code have no place in it: a reader refuses them, so a
converter leaves them out and says so.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..errors import FormatError, Problem

# Those of a tokenizer: what the tables of transformers' tokenizers name.
OF_TOKENIZERS = r"""
    (tokenizer | tokenizer_config | special_tokens_map | added_tokens | vocab | tekken | vocab-src | vocab-tgt
      | target_vocab | entity_vocab | normalizer | byte_maps | emoji | word_shape | word_pronunciation)\.json
    | merges\.txt | vocab\.txt | dict\.txt | prophetnet\.tokenizer | [A-Za-z0-9_.-]*\.(model | tiktoken | spm | codes)
    | chat_template\.(jinja | json) | additional_chat_templates/[A-Za-z0-9_-]+\.jinja
"""
# Files of a Hugging Face directory that belong to the model, by name relative to it.
WANTED = re.compile(
    OF_TOKENIZERS
    + r"""
    | config\.json | generation_config\.json
    | (preprocessor|processor|image_processor|video_preprocessor)_config\.json
    | modules\.json | sentence_bert_config\.json | config_sentence_transformers\.json | [0-9]_[A-Za-z]+/config\.json
    | (LICEN[CS]E|NOTICE|COPYING)[A-Za-z0-9_.-]* | README\.md
    """,
    re.VERBOSE,
)

# Keys that fetch or run code in transformers, at any depth of any JSON document.
FORBIDDEN_KEYS = frozenset({
    "auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "use_kernels", "kernel_config",
})  # fmt: skip
# More such keys, by document. Each tensor's scheme says how it is stored: a second statement could only contradict
# it. Keys that name a tokenizer's files can point outside its folder: transformers does not check them.
FORBIDDEN_IN = {
    "config.json": frozenset({"quantization_config"}),
    "tokenizer_config.json": frozenset({
        "added_tokens_file", "chat_template_file", "fast_tokenizer_files", "init_inputs", "merges_file", "model_file",
        "special_tokens_map_file", "spm_file", "tokenizer_file", "vocab_file",
    }),
}  # fmt: skip
# Left out if they hold a path on somebody's disk; the name of a model on a hub may stay.
_PATHS = frozenset({"_name_or_path", "name_or_path"})
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

MAX_DEPTH = 64
MAX_DIGITS = 4300  # of an integer: the time to convert one is quadratic in its digits


def parse_json(name: str, data: bytes | memoryview, *, constants: bool = False) -> Any:
    """Parse a JSON document and return its value.

    Args:
        constants: take ``Infinity``, ``-Infinity`` and ``NaN`` for numbers, which JSON does not know and Python writes.

    Raises:
        FormatError: AIB-E705: not UTF-8, not JSON, a repeated key, or nesting deeper than 64.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, inner in items:
            if key in value:
                raise _bad("AIB-E705", name, f"key {key!r} is repeated")
            value[key] = inner
        return value

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)

    def constant(text: str) -> Any:
        if not constants:
            raise ValueError(f"{text} is no JSON number")
        return float(text)

    try:
        value = json.loads(
            bytes(data).decode("utf-8"), object_pairs_hook=pairs, parse_int=integer, parse_constant=constant
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad("AIB-E705", name, f"not JSON: {error}") from error
    if _depth(value) > MAX_DEPTH:
        raise _bad("AIB-E705", name, "nested too deeply")
    return value


# How transformers writes floats that JSON has no numbers for: {"__float__": "Infinity"}.
_FLOAT = "__float__"
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def with_floats(value: Any) -> Any:
    """Return a parsed document with the floats for which transformers writes an object."""
    if isinstance(value, list):
        return [with_floats(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    text = value.get(_FLOAT)
    if len(value) == 1 and isinstance(text, str) and text in _FLOATS:
        return _FLOATS[text]
    return {key: with_floats(inner) for key, inner in value.items()}


def without_floats(value: Any) -> Any:
    """Return a parsed document in which such objects stand for the floats that JSON has no numbers for."""
    if isinstance(value, list):
        return [without_floats(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_floats(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def check(name: str, data: bytes | memoryview) -> Any:
    """Check one document, as a reader must before anything else sees it, and return its value if it is JSON.

    Raises:
        FormatError: AIB-E705 as ``parse_json``, or AIB-E706 for a key that fetches or runs code.
    """
    if not _is_json(name):
        return None
    value = parse_json(name, data)
    if _can_act(name) and (path := _find(value, _forbidden(name))):
        why = "fetches or runs code, names a file, or contradicts the schemes"
        raise _bad("AIB-E706", name, f"key {'.'.join(path)!r} {why}")
    return value


def clean(name: str, data: bytes) -> tuple[bytes, list[str]]:
    """Return the document as a reader takes it, and the keys that it refuses, which are left out.

    Floats that JSON has no numbers for become objects, as transformers writes them. Without either the bytes stay.
    """
    if not _is_json(name) or not _can_act(name):
        return data, []
    value = parse_json(name, data, constants=True)
    dropped: list[str] = []
    plain = without_floats(_without(value, _forbidden(name), "", dropped))
    if plain == value and not dropped:
        return data, []
    return _written(plain), [f"{name}:{key}" for key in dropped]


def with_key(name: str, data: bytes, key: str, value: Any) -> bytes:
    """Return a JSON object with one more key."""
    return _written(parse_json(name, data) | {key: value})


def _written(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _is_json(name: str) -> bool:
    """Tell whether a document is JSON, ignoring case: on some file systems a library would find ``CONFIG.JSON`` too."""
    return name.lower().endswith(".json")


def _can_act(name: str) -> bool:
    """Tell whether a document's keys can act; those of a vocabulary cannot: they are tokens, any strings."""
    return name.lower().rsplit("/", 1)[-1] not in ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json")


def _forbidden(name: str) -> frozenset[str]:
    return FORBIDDEN_KEYS | FORBIDDEN_IN.get(name.lower(), frozenset())


def _find(value: Any, keys: frozenset[str]) -> list[str] | None:
    """Return the path, outermost key first, to the first of ``keys`` that is set; ``None`` if none is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key in keys and inner is not None:
            return [key]
        if (found := _find(inner, keys)) is not None:
            return [str(key), *found]
    return None


def _without(value: Any, keys: frozenset[str], path: str, dropped: list[str]) -> Any:
    if isinstance(value, list):
        return [_without(inner, keys, f"{path}.{i}", dropped) for i, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        here = f"{path}.{key}" if path else key
        if key in keys or (key in _PATHS and inner and not _HUB_NAME.fullmatch(str(inner))):
            dropped.append(here)
        else:
            kept[key] = _without(inner, keys, here, dropped)
    return kept


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [i for v in level for i in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return depth


def _bad(code: str, name: str, what: str) -> FormatError:
    return FormatError(Problem(code, f"document {name!r}: {what}"))
