"""Holds the tokens of a GGUF file, or those that are to become one's: texts, kinds, and the ids of special ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SourceError

# Kinds of token (``tokenizer.ggml.token_type``).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "sep": "seperator_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
SPACE = "\u2581"  # SentencePiece's symbol for a space
_NUMBERS = "an array of numbers"
_WORDS = {int: "an integer", bool: "true or false", str: "text", list: "an array of texts", np.ndarray: _NUMBERS}
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Around:
    """Say which special tokens come before and after a text, and whether they do if the file does not say.

    ``pairs``: two texts have the first token once, and the second text is of type 1.
    """

    starts: bool = False
    ends: bool = False
    start: str = "bos"
    end: str = "eos"
    pairs: bool = False


class Vocabulary:
    """Hold the tokens of a GGUF file: texts, kinds and the ids of special ones, checked against each other.

    Raises:
        SourceError: there is no tokenizer, or its parts contradict each other.
    """

    def __init__(self, metadata: Mapping[str, Any], rows: int) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.get("tokens", list, [])
        if not 0 < len(self.tokens) <= rows:
            raise SourceError(f"tokenizer.ggml.tokens has {len(self.tokens)} tokens, the embeddings {rows} rows")
        kinds = self.get("token_type", np.ndarray, np.full(len(self.tokens), NORMAL))
        if len(kinds) != len(self.tokens):
            raise SourceError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(self.tokens)} tokens")
        self.kinds: list[int] = kinds.tolist()
        self.rename(self.tokens)
        self.special = {name: self.id_of(key) for name, key in SPECIAL.items()}

    def rename(self, tokens: list[str]) -> None:
        """Give the tokens other texts."""
        self.tokens = tokens
        # Converters give such names to ids that no token has.
        self.ids = {
            token: i
            for i, (token, kind) in enumerate(zip(tokens, self.kinds, strict=True))
            if not (kind == UNUSED and token == f"[PAD{i}]")
        }

    def get(self, key: str, kind: type, otherwise: Any) -> Any:
        """Return a value of ``tokenizer.ggml``, checked to be a ``kind``; ``otherwise`` if it is missing."""
        value = self._metadata.get(f"tokenizer.ggml.{key}", otherwise)
        if value is not otherwise and type(value) is not kind:  # a bool is no number
            found = _NUMBERS if isinstance(value, np.ndarray) else f"{value!r:.50}"
            raise SourceError(f"tokenizer.ggml.{key} is {found}, {_WORDS[kind]} is needed")
        return value

    def id_of(self, key: str) -> int | None:
        """Return the id of a special token, or ``None`` if there is none."""
        value = self.get(key, int, None)
        # In files, the largest number means "none".
        if value is None or value == 0xFFFF_FFFF:
            return None
        if not 0 <= value < len(self.tokens):
            raise SourceError(f"tokenizer.ggml.{key} is {value}, there are {len(self.tokens)} tokens")
        return value

    def assume(self, **usual: int) -> None:
        """Take tokens with these ids for special ones where the file does not say, if they are such tokens."""
        for name, i in usual.items():
            if self.special[name] is None and self.kinds[i : i + 1] in ([CONTROL], [UNKNOWN]):
                self.special[name] = i

    def scores(self) -> list[float]:
        """Return the score of each token."""
        scores = self.get("scores", np.ndarray, np.zeros(len(self.tokens)))
        if len(scores) != len(self.tokens):
            raise SourceError(f"tokenizer.ggml.scores has {len(scores)} entries, there are {len(self.tokens)} tokens")
        return scores.tolist()

    def added(self) -> list[dict[str, Any]]:
        """List the tokens that are matched literally in a text, before anything else is done to it."""
        kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
        return [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": kinds[kind]}
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in kinds and token and self.ids[token] == i
        ]  # fmt: skip
