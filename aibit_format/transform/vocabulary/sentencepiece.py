"""Reads and cuts a model of SentencePiece (``tokenizer.model``), whose pieces have the ids of their places.

The file is a message of protobuf, ``ModelProto`` of ``sentencepiece_model.proto``. Pieces that go are left out, the
others and all else stay as they are, byte for byte; only the trainer's ids of special pieces are written anew. BPE
joins the two neighbours that make the piece of the best score; Unigram is as in ``models``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ...container.vocabulary import Kept
from ...errors import SourceError
from ...formats.protobuf import Field, fields, written
from .models import joined_from

_PIECES, _TRAINER = 1, 2  # fields of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _SIZE = 3, 4  # of the trainer
_UNIGRAM, _BPE = 1, 2
_IDS = {40: 0, 41: 1, 42: 2, 43: -1}  # of the trainer, with defaults: unknown, begin, end, padding
_NORMAL, _UNUSED, _BYTE = 1, 5, 6  # kinds of pieces
_SPACE = "\u2581"


class SentencePiece:
    """Hold a model of SentencePiece.

    Raises:
        SourceError: it is damaged, or of another kind than Unigram and BPE.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        try:
            self._fields = list(fields(data))
            pieces = [_dictionary(field.value) for field in self._fields if field.number == _PIECES]
            trainer = next((field.value for field in self._fields if field.number == _TRAINER), b"")
            self._trainer = list(fields(trainer))
            self._texts = [bytes(piece[_TEXT]).decode() for piece in pieces]
            self._scores = [struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0] for piece in pieces]
            self._kinds = [int(piece.get(_KIND, _NORMAL)) for piece in pieces]
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise SourceError(f"{name}: no model of SentencePiece, or truncated: {error}") from error
        self._type = _dictionary(trainer).get(_MODEL_TYPE, _UNIGRAM)
        if self._type not in (_UNIGRAM, _BPE) or not pieces:
            raise SourceError(
                f"{name}: {len(pieces)} pieces of SentencePiece's type {self._type}; Unigram (1) and BPE (2) are cut: "
                "save the tokenizer as tokenizer.json first (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )

        self.tokens = {text: i for i, text in enumerate(self._texts)}
        self.always = self._always()

    def _always(self) -> frozenset[int]:
        """Return the ids of pieces that are not learned, and of the one of the least score.

        What is unknown costs that and 10 more.
        """
        found = {i for i, kind in enumerate(self._kinds) if kind not in (_NORMAL, _UNUSED)}
        normal = [i for i, kind in enumerate(self._kinds) if kind == _NORMAL]
        return frozenset(found | set(sorted(normal, key=lambda i: self._scores[i])[:1]))

    def parts(self, token: str) -> Iterator[str]:
        """Yield the pieces that a piece of BPE is joined from."""
        if self._type == _BPE and self._kinds[self.tokens[token]] == _NORMAL:
            yield from joined_from(list(token), lambda pair: self._ranks.get("".join(pair)), "".join, token)

    @cached_property
    def _ranks(self) -> dict[str, float]:
        """Return the scores of pieces that are joined, negative: the best comes first."""
        pieces = zip(self._texts, self._scores, self._kinds, strict=True)
        return {text: -score for text, score, kind in pieces if kind in (_NORMAL, _UNUSED)}

    def spelling(self, kept: frozenset[str]) -> Iterator[str]:
        """Yield pieces of one character: those of ASCII, and those in pieces that are kept."""
        if _BYTE in self._kinds:
            return
        chars = {chr(code) for code in range(33, 127)} | {_SPACE} | {char for token in kept for char in token}
        yield from sorted(chars & self.tokens.keys())

    def text(self, token: str) -> str | None:
        """Return what a piece stands for."""
        return None if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else token

    def cut(self, kept: Kept) -> bytes:
        """Return the model with the pieces that are kept."""
        new = kept.new(range(len(self._texts))).tolist()
        left = sum(i >= 0 for i in new)
        if [i for i in new if i >= 0] != list(range(left)):
            raise SourceError(f"{self.name}: what is kept of its pieces does not come first")
        found, place = [], 0
        for field in self._fields:
            if field.number == _PIECES:
                if new[place] >= 0:
                    found.append(bytes(field.raw))
                place += 1
            elif field.number == _TRAINER:
                found.append(written(_TRAINER, self._told(new, left)))
            else:
                found.append(bytes(field.raw))
        return b"".join(found)

    def _told(self, new: list[int], left: int) -> bytes:
        """Return what is said of the training, with the new ids and size."""
        changed: dict[int, int] = {}
        stated = {field.number: field.value for field in self._trainer}
        for number, usual in _IDS.items():
            value = int(stated.get(number, usual))
            if 0 <= value < len(new) and new[value] != value:
                changed[number] = new[value]
        if _SIZE in stated:
            changed[_SIZE] = left
        kept: list[Field] = [field for field in self._trainer if field.number not in changed]
        pairs = [(field.number, bytes(field.raw)) for field in kept]
        pairs += [(number, written(number, value)) for number, value in changed.items()]
        return b"".join(raw for _, raw in sorted(pairs, key=lambda pair: pair[0]))


def _dictionary(data: Any) -> dict[int, Any]:
    return {field.number: field.value for field in fields(data)}
