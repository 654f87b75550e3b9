"""Translates Unigram tokenizers (``tokenizer.ggml.model`` "t5") between GGUF and ``tokenizer.json``, both ways.

A text is normalized by SentencePiece's compiled map of characters, its spaces are merged, and it is cut so that the sum
of its tokens' scores is greatest. What no token covers costs 10 more than the worst normal token; so no token that is
never produced may have a lower score than that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import SourceError
from .vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, Around, Vocabulary

_MERGED = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_NEVER = -10000.0  # the score that converters give tokens that are never produced


def to_tokenizer(vocabulary: Vocabulary) -> tuple[dict[str, Any], Around]:
    """Return the parts of ``tokenizer.json``, and what is put around a text.

    Raises:
        SourceError: the metadata are of wrong kinds, or contradict each other.
    """
    vocabulary.assume(pad=0, eos=1, unk=2)
    scores, kinds = vocabulary.scores(), vocabulary.kinds
    least = min((score for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL), default=0.0)
    metaspace = {
        "type": "Metaspace", "replacement": SPACE, "split": not any(SPACE in token[1:] for token in vocabulary.tokens),
        "prepend_scheme": "always" if vocabulary.get("add_space_prefix", bool, True) else "never",
    }  # fmt: skip
    steps = _charsmap(vocabulary)
    if vocabulary.get("remove_extra_whitespaces", bool, False):
        steps += [{"type": "Strip", "strip_left": True, "strip_right": True}, _MERGED]
    falls_back = kinds.count(BYTE) == 256
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}] if falls_back else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": [*decoders, metaspace]} if decoders else metaspace,
        "model": {
            "type": "Unigram", "unk_id": vocabulary.special["unk"], "byte_fallback": falls_back,
            "vocab": [[token, max(score, least)] for token, score in zip(vocabulary.tokens, scores, strict=True)],
        },
    }, Around(ends=True)  # fmt: skip


def _charsmap(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    found = vocabulary.get("precompiled_charsmap", np.ndarray, None)
    if found is None or not len(found):
        return []
    if found.dtype.itemsize != 1:
        raise SourceError(f"tokenizer.ggml.precompiled_charsmap holds {found.dtype}, bytes are needed")
    return [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(found.tobytes()).decode()}]


def to_metadata(tokenizer: Mapping[str, Any], tokens: Sequence[str], kinds: list[int]) -> dict[str, Any]:
    """Return GGUF's metadata, without tokens and kinds; the latter are made those of unknown and of bytes.

    Raises:
        SourceError: llama.cpp has no such normalizer or pre-tokenizer.
    """
    model = tokenizer["model"]
    scores = {i: float(score) for i, (_, score) in enumerate(model["vocab"])}
    if model.get("unk_id") is not None:
        kinds[model["unk_id"]] = UNKNOWN
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == NORMAL and model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            kinds[i] = BYTE
    values: dict[str, Any] = {
        "ggml.model": "t5", "ggml.pre": "default",
        "ggml.scores": [_NEVER if kind == UNUSED else scores.get(i, 0.0 if kind == CONTROL else -1000.0)
                        for i, kind in enumerate(kinds)],
    }  # fmt: skip
    before = _steps(tokenizer.get("normalizer"), "normalizers")
    cuts = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    values["ggml.remove_extra_whitespaces"] = any(
        step["type"] == "WhitespaceSplit" or step.get("pattern") == _MERGED["pattern"] for step in (*before, *cuts)
    )
    for step in before:
        if step["type"] == "Precompiled":
            values["ggml.precompiled_charsmap"] = _decoded(step["precompiled_charsmap"])
        elif step["type"] != "Strip" and step.get("pattern") != _MERGED["pattern"]:
            raise SourceError(f"tokenizer.json: normalizer {step['type']}, llama.cpp has none such for Unigram")
    if not cuts or cuts[-1]["type"] != "Metaspace" or {step["type"] for step in cuts[:-1]} - {"WhitespaceSplit"}:
        raise SourceError("tokenizer.json: llama.cpp has no such pre-tokenizer for Unigram")
    values["ggml.add_space_prefix"] = cuts[-1].get("prepend_scheme", "always") != "never"
    return values


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SourceError("tokenizer.json: precompiled_charsmap is not base64") from error


def _steps(value: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    return list(value.get(inside, [value])) if value else []
