"""Reads and cuts the models of a ``tokenizer.json``: BPE, Unigram, WordPiece and WordLevel, each as tokenizers has it.

A model with fewer tokens makes the same tokens of a text, if all of them are kept, with what they are made of. BPE
joins the pair of the best rank, again and again: with the tokens in between kept, each best pair is still there, and
no pair is new. What a token is joined from does not depend on what is around it. Unigram takes the cheapest path,
WordPiece the longest piece: less to choose from leaves the choice as it was, if it is still there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from ...errors import SourceError

Pair = tuple[str, str]
Ids = Mapping[int, int]  # old id -> new id, of what is kept


class Model(ABC):
    """Hold the model of a tokenizer, as parsed JSON."""

    continuing: ClassVar[str] = ""  # the key of what a piece inside a word begins with

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.prefix = str(document.get(self.continuing) or "")

    @cached_property
    @abstractmethod
    def tokens(self) -> dict[str, int]:
        """Return the ids of all tokens."""

    @property
    def always(self) -> Iterator[int]:
        """Yield the ids of tokens without which the model is none, or is another one."""
        if (unknown := self.document.get("unk_token")) is not None and unknown in self.tokens:
            yield self.tokens[unknown]

    @property
    def has_bytes(self) -> bool:
        """Tell whether a character without a token becomes tokens of bytes, ``<0x0A>``."""
        return bool(self.document.get("byte_fallback"))

    def parts(self, token: str) -> Iterator[str]:
        """Yield the tokens that are joined to this one, and those that they are joined from."""
        yield from ()

    @abstractmethod
    def cut(self, new: Ids) -> dict[str, Any]:
        """Return the model with these tokens alone, under their new ids."""


class _Dictionary(Model):
    """Hold a model whose vocabulary is an object of tokens and ids."""

    @cached_property
    def tokens(self) -> dict[str, int]:
        found = self.document.get("vocab")
        if not isinstance(found, dict) or not all(type(i) is int and i >= 0 for i in found.values()):
            raise SourceError("tokenizer.json: its vocabulary is no object of tokens and ids")
        return found

    def cut(self, new: Ids) -> dict[str, Any]:
        left = {token: new[i] for token, i in self.tokens.items() if i in new}
        return {**self.document, "vocab": left}


class WordLevel(_Dictionary):
    """Hold words."""


class WordPiece(_Dictionary):
    """Hold pieces of words; the longest that fits is taken."""

    continuing = "continuing_subword_prefix"


class BPE(_Dictionary):
    """Hold tokens that pairs are joined to, the pair of the best rank first."""

    continuing = "continuing_subword_prefix"

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs, best first; older files have both in one text with a space between."""
        pairs = self.document.get("merges")
        found = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in pairs or []]
        if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in found):
            raise SourceError("tokenizer.json: a merge is no pair of tokens")
        return found  # type: ignore[return-value]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def _joined(self, pair: tuple[str, str]) -> str:
        return pair[0] + pair[1][len(self.prefix) :]

    def parts(self, token: str) -> Iterator[str]:
        yield from joined_from(self._symbols(token), self._ranks.get, self._joined, token)

    def _symbols(self, token: str) -> list[str]:
        suffix = str(self.document.get("end_of_word_suffix") or "")
        ends = bool(suffix) and token.endswith(suffix) and token != suffix
        inside = bool(self.prefix) and token.startswith(self.prefix) and token != self.prefix
        text = token[len(self.prefix) if inside else 0 : len(token) - len(suffix) if ends else None]
        found = [self.prefix + char if i or inside else char for i, char in enumerate(text)]
        return [*found[:-1], found[-1] + suffix] if ends and found else found

    def cut(self, new: Ids) -> dict[str, Any]:
        document = super().cut(new)
        left = document["vocab"]
        kept = [pair for pair in self.merges if pair[0] in left and pair[1] in left and self._joined(pair) in left]
        pairs = self.document.get("merges") or []
        as_text = bool(pairs) and isinstance(pairs[0], str)
        return {**document, "merges": [" ".join(pair) if as_text else list(pair) for pair in kept]}


class Unigram(Model):
    """Hold pieces with scores, in the order of their ids; of a text the cheapest way through them is taken."""

    @cached_property
    def tokens(self) -> dict[str, int]:
        return {piece: i for i, (piece, _) in enumerate(self._pieces)}

    @cached_property
    def _pieces(self) -> list[tuple[str, float]]:
        found = self.document.get("vocab")
        if not isinstance(found, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in found
        ):
            raise SourceError("tokenizer.json: its vocabulary is no list of pieces and scores")
        return [(piece, float(score)) for piece, score in found]

    @property
    def always(self) -> Iterator[int]:
        """Yield the unknown piece, and the one of the least score: what is unknown costs that and 10 more."""
        if type(unknown := self.document.get("unk_id")) is int:
            yield unknown
        if self._pieces:
            yield min(range(len(self._pieces)), key=lambda i: self._pieces[i][1])

    def cut(self, new: Ids) -> dict[str, Any]:
        pairs = [pair for i, pair in enumerate(self.document["vocab"]) if i in new]
        places = [new[i] for i in range(len(self._pieces)) if i in new]
        if places != list(range(len(places))):
            raise SourceError("tokenizer.json: what is kept of its pieces does not come first")
        unknown = self.document.get("unk_id")
        return {**self.document, "vocab": pairs, "unk_id": None if unknown is None else new[unknown]}


MODELS: dict[str, type[Model]] = {"BPE": BPE, "Unigram": Unigram, "WordPiece": WordPiece, "WordLevel": WordLevel}


def model_of(document: Any) -> Model:
    """Return the model of a parsed ``tokenizer.json``.

    Raises:
        SourceError: it is of a kind that is not cut.
    """
    found = document.get("model") if isinstance(document, dict) else None
    kind = found.get("type", "BPE" if "merges" in found else None) if isinstance(found, dict) else None
    if not isinstance(found, dict) or kind not in MODELS:
        raise SourceError(
            f"tokenizer.json: a model of kind {kind!r} cannot be cut; {', '.join(MODELS)} can: save the tokenizer with "
            "a current transformers first (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    return MODELS[kind](found)


def joined_from(
    symbols: list[str], rank: Callable[[Pair], float | None], joined: Callable[[Pair], str], token: str
) -> Collection[str]:
    """Return what a token is joined from, symbols and all in between; nothing if they are not joined to it.

    Args:
        symbols: its characters.
        rank: of a pair; the least is joined first, and the leftmost of several. ``None``: they are not joined.
        joined: what a pair becomes.
        token: the token.
    """
    parts, found = list(symbols), set(symbols)
    while len(parts) > 1:
        ranks = ((rank(pair), i) for i, pair in enumerate(pairwise(parts)))
        best = min(((value, i) for value, i in ranks if value is not None), default=None)
        if best is None:
            return ()
        i = best[1]
        parts[i : i + 2] = [joined((parts[i], parts[i + 1]))]
        found.add(parts[i])
    return found if parts == [token] else ()
