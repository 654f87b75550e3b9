"""Chooses which tokens of a vocabulary are kept: by how often a text has them, by their scripts, or by their ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ...container.vocabulary import Kept
from ...errors import RecipeError
from .scripts import is_written_in
from .tokenizer import Tokenizer

MULTIPLE = 64  # of the number of rows that are kept, which suits matrix products


@dataclass(frozen=True)
class Wanted:
    """Say which tokens are wanted; what any of these wants is kept.

    ``counts`` i64 [rows]: how often a text has each token. Of these, those with ``min_count`` or more are kept; and of
    them, most frequent first, as many as make up the share ``coverage`` of the text. ``scripts``: tokens that are
    written in them. ``ids``: themselves.
    """

    counts: np.ndarray | None = None
    min_count: int = 1
    coverage: float | None = None
    scripts: frozenset[str] = frozenset()
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.counts is None and self.ids is None and not self.scripts:
            raise RecipeError(
                "nothing says which tokens to keep: give a text (--text), scripts or languages, or a file of ids"
            )
        if self.min_count < 1 or not 0 < (1 if self.coverage is None else self.coverage) <= 1:
            raise RecipeError(f"a least count of {self.min_count}, 1 or more; coverage {self.coverage}, above 0 to 1")


@dataclass(frozen=True)
class Chosen:
    """Hold the map of what is kept, and why: the number of rows by the reason that came first."""

    kept: Kept
    reasons: dict[str, int] = field(default_factory=dict)


def choose(
    tokenizer: Tokenizer, size: int, wanted: Wanted, always: Iterable[int] = (), multiple: int = MULTIPLE
) -> Chosen:
    """Choose the tokens to keep, up to a multiple of rows.

    Beside what is wanted these are special, added, byte and template tokens, what tokens are joined from, characters
    by which words are spelled where there are no bytes, and last the next frequent tokens, or those of the lowest ids.

    Args:
        tokenizer: of the model.
        size: rows of the embeddings.
        wanted: what is asked for.
        always: more ids that are kept, such as those that a config names.
        multiple: of rows; all are kept if there are not so many.

    Raises:
        RecipeError: nothing is kept of a text; or an id is beyond the table.
    """
    ids, found, reasons = tokenizer.tokens, set[int](), dict[str, int]()
    names = {i: token for token, i in ids.items() if i < size}
    parts: dict[int, list[int]] = {}

    def needs(i: int) -> list[int]:
        if i not in parts:
            each = tokenizer.parts(names[i]) if i in names else ()
            parts[i] = [ids[part] for part in each if ids.get(part, size) < size]
        return parts[i]

    def keep(why: str, more: Iterable[int]) -> None:
        before = len(found)
        found.update(i for i in more if 0 <= i < size)
        if len(found) > before:
            reasons[why] = reasons.get(why, 0) + len(found) - before

    keep("special", [*tokenizer.always, *always])
    if wanted.counts is not None:
        keep("text", _frequent(wanted, size))
    if wanted.scripts:
        texts = ((i, tokenizer.text(token)) for i, token in names.items())
        keep("script", (i for i, text in texts if text is not None and is_written_in(text, wanted.scripts)))
    if wanted.ids is not None:
        keep("ids", _checked(wanted.ids, size))
    keep("part", [part for i in sorted(found) for part in needs(i)])
    spelled = tokenizer.spelling(frozenset(names[i] for i in found if i in names))
    keep("spelling", [ids[token] for token in spelled])
    room = min(-(-len(found) // multiple) * multiple, size) - len(found)
    for everything in (False, True):  # tokens that nothing can be joined to are taken last
        for i in _next(found, names, wanted.counts, size) if room else ():
            more = {i, *needs(i)} - found
            if more and (everything or len(more) <= room):
                more = {i} if everything else more
                keep("padding", more)
                room -= len(more)
            if not room:
                break
    return Chosen(Kept(np.array(sorted(found), np.uint32), size), reasons)


def _frequent(wanted: Wanted, size: int) -> list[int]:
    """Return the ids of the tokens of a text that are wanted, most frequent first."""
    counts = np.asarray(wanted.counts)[:size]
    order = np.argsort(-counts, kind="stable")  # of equals the lowest id first
    order = order[counts[order] >= wanted.min_count]
    if wanted.coverage is not None:
        total = np.cumsum(counts[order])
        order = order[: int(np.searchsorted(total, wanted.coverage * int(counts.sum()))) + 1]
    if not len(order):
        raise RecipeError(
            f"the text keeps nothing: of its {int(counts.sum()):,} tokens none is there {wanted.min_count} times; "
            "give more text, or a smaller least count (--min-count)"
        )
    return order.tolist()


def _checked(ids: np.ndarray, size: int) -> list[int]:
    if not len(ids):
        raise RecipeError("the list of ids keeps nothing: it is empty")
    beyond = ids[(ids < 0) | (ids >= size)]
    if len(beyond):
        raise RecipeError(f"id {beyond[0]} is beyond the table of {size} rows, 0 to {size - 1}")
    return ids.tolist()


def _next(found: set[int], names: dict[int, str], counts: np.ndarray | None, size: int) -> list[int]:
    """Return the ids that are not kept: the most frequent first, of equals the lowest, rows without a token last."""
    rest = np.array([i for i in range(size) if i not in found], np.int64)
    many = np.zeros(len(rest), np.int64) if counts is None else np.asarray(counts)[rest]
    nameless = np.array([i not in names for i in rest.tolist()], bool)
    return rest[np.lexsort((rest, nameless, -many))].tolist()
