"""Defines how a file says which layers, channels, heads and experts of a larger model its own has kept.

Metadata hold two tables. ``pruning.applied`` and ``pruning.scores`` have a row for each time that the model was pruned:
how, as users write it, and by what the choice was made. ``pruning.kept.*`` have a row for each thing of which some was
kept: in which step, of what kind, in which layer and expert of the model before that step (-1: in all), and how many.
The document ``pruning.kept`` has these numbers, a u32 each, row after row; in each row they increase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, Problem

DOCUMENT = "pruning.kept"
APPLIED, SCORES = "pruning.applied", "pruning.scores"
STEP, KIND, LAYER, EXPERT, COUNT = COLUMNS = tuple(
    f"{DOCUMENT}.{column}" for column in ("step", "kind", "layer", "expert", "count")
)
KEYS = (APPLIED, SCORES, *COLUMNS)
_U32 = np.dtype("<u4")


@dataclass(frozen=True)
class Kept:
    """Say which of a kind were kept: ``numbers`` u32 [count], increasing, of a layer and an expert; -1: of all."""

    step: int
    kind: str
    numbers: np.ndarray
    layer: int = -1
    expert: int = -1


def described(
    before: Mapping[str, Any], document: bytes | None, how: str, scored: str, rows: Iterable[Kept]
) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the document of a model that is pruned once more.

    Args:
        before: the metadata of the model until now.
        document: its document, if it has one.
        how: it is pruned, as users write it.
        scored: by what the choice is made.
        rows: what is kept; their steps count from 0 in what comes from here, and are moved behind the earlier ones.
    """
    first = len(before.get(APPLIED, ()))
    made = list(rows)
    new: dict[str, Sequence[Any]] = {
        STEP: [first + row.step for row in made], KIND: [row.kind for row in made],
        LAYER: [row.layer for row in made], EXPERT: [row.expert for row in made],
        COUNT: [len(row.numbers) for row in made],
    }  # fmt: skip
    said: dict[str, Any] = {APPLIED: [*before.get(APPLIED, ()), how], SCORES: [*before.get(SCORES, ()), scored]}
    for column, values in new.items():
        both = [*before.get(column, ()), *values]
        said[column] = both if column == KIND else np.array(both, np.int64)
    numbers = b"".join(row.numbers.astype(_U32).tobytes() for row in made)
    return said, bytes(document or b"") + numbers


def kept(metadata: Mapping[str, Any], documents: Mapping[str, Any]) -> list[Kept]:
    """Return what a file says, in its order; nothing if it was not pruned.

    Raises:
        FormatError: AIB-E707: numbers do not increase.
    """
    if COUNT not in metadata or DOCUMENT not in documents:
        return []
    numbers = np.frombuffer(documents[DOCUMENT], _U32)
    ends = np.cumsum(np.asarray(metadata[COUNT], np.int64))
    inside = np.ones(len(numbers), bool)
    inside[ends[ends < len(numbers)]] = False  # where rows begin
    wrong = np.flatnonzero((numbers[1:] <= numbers[:-1]) & inside[1:])
    if len(wrong):
        at = int(wrong[0]) + 1
        raise FormatError(
            Problem(
                "AIB-E707", f"document {DOCUMENT!r}: {numbers[at]} after {numbers[at - 1]}: numbers of a row increase"
            )
        )
    rows = zip(*(metadata[column] for column in (STEP, KIND, LAYER, EXPERT)), np.split(numbers, ends[:-1]), strict=True)
    return [Kept(int(step), kind, of, int(layer), int(expert)) for step, kind, layer, expert, of in rows]
