"""Translates WordPiece tokenizers (``tokenizer.ggml.model`` "bert") between GGUF and ``tokenizer.json``, both ways.

GGUF marks the tokens that begin a word, with SentencePiece's symbol for a space; WordPiece marks the others, with "##".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SourceError
from .vocabulary import CONTROL, SPACE, UNKNOWN, UNUSED, Around, Vocabulary

_INSIDE = "##"
_KEPT = (CONTROL, UNKNOWN, UNUSED)  # kinds whose tokens have no mark
_LONGEST = 100  # characters of a word, above which it is unknown


def to_tokenizer(vocabulary: Vocabulary) -> tuple[dict[str, Any], Around]:
    """Return the parts of ``tokenizer.json``, and what is put around a text. The vocabulary gets WordPiece's marks.

    Raises:
        SourceError: the metadata are of wrong kinds, or no token stands for unknown words.
    """
    vocabulary.assume(bos=101, unk=100, sep=102, pad=0, mask=103)
    unknown = vocabulary.special["unk"]
    if unknown is None:
        raise SourceError("tokenizer.ggml.unknown_token_id is missing: WordPiece needs a token for unknown words")
    vocabulary.rename(
        [
            token if kind in _KEPT or i == unknown else token[1:] if token.startswith(SPACE) else _INSIDE + token
            for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        ]
    )
    if vocabulary.special["cls"] is None:
        vocabulary.special["cls"] = vocabulary.special.pop("bos")
        vocabulary.special["bos"] = None
    lower = vocabulary.get("normalizer.lowercase", bool, True)
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": lower,
            "strip_accents": vocabulary.get("normalizer.strip_accents", bool, None),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": _INSIDE, "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": vocabulary.tokens[unknown], "continuing_subword_prefix": _INSIDE,
            "max_input_chars_per_word": _LONGEST, "vocab": vocabulary.ids,
        },
    }, Around(starts=True, ends=True, start="cls", end="sep", pairs=True)  # fmt: skip


def to_metadata(tokenizer: Mapping[str, Any], tokens: list[str], kinds: Sequence[int]) -> dict[str, Any]:
    """Return GGUF's metadata, without tokens and kinds; the former get GGUF's marks.

    Raises:
        SourceError: llama.cpp has no such normalizer or pre-tokenizer.
    """
    normalizer, cut = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    if normalizer.get("type") != "BertNormalizer" or cut.get("type") != "BertPreTokenizer":
        raise SourceError("tokenizer.json: llama.cpp has no such normalizer or pre-tokenizer for WordPiece")
    for name in ("clean_text", "handle_chinese_chars"):
        if not normalizer.get(name, True):
            raise SourceError(f"tokenizer.json: normalizer without {name}: llama.cpp has no such thing")
    if (prefix := tokenizer["model"].get("continuing_subword_prefix", _INSIDE)) != _INSIDE:
        raise SourceError(f"tokenizer.json: tokens inside words begin with {prefix!r:.20}, not with {_INSIDE!r}")
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind not in _KEPT:
            tokens[i] = token[len(_INSIDE) :] if token.startswith(_INSIDE) else SPACE + token
    lower = bool(normalizer.get("lowercase", True))
    strips = normalizer.get("strip_accents")
    values: dict[str, Any] = {"ggml.model": "bert", "ggml.pre": "default"}
    # Newer versions of llama.cpp look for these; to all others, a text is always in lower case, without accents.
    stated = {"lowercase": lower, "strip_accents": lower if strips is None else strips}
    return values | {f"ggml.normalizer.{key}": value for key, value in stated.items() if not value}
