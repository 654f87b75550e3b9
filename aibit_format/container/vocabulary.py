"""Defines how a file says which tokens of a larger vocabulary its model has kept.

The document ``vocabulary.kept`` has a u32 for each row of the embeddings: which row of the original it is, increasing.
The metadata ``vocabulary.size`` is how many rows the original has, and ``vocabulary.source`` the digests of its files.
Ids beyond the rows, of tokens that only the tokenizer knows, follow the rows there and here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import FormatError, Problem

DOCUMENT, SIZE, SOURCE = "vocabulary.kept", "vocabulary.size", "vocabulary.source"
MAX_SIZE = 1 << 32
_U32 = np.dtype("<u4")


@dataclass(frozen=True)
class Kept:
    """Map ids of a cut vocabulary to those of the original: ``ids`` u32 [rows], of ``size`` rows."""

    ids: np.ndarray
    size: int

    @property
    def document(self) -> bytes:
        """Return the document."""
        return self.ids.astype(_U32).tobytes()

    @cached_property
    def _places(self) -> np.ndarray:
        places = np.full(self.size, -1, np.int64)
        places[self.ids] = np.arange(len(self.ids))
        return places

    def new(self, ids: Any) -> np.ndarray:
        """Return the new ids, i64, of old ones; -1 for those that are gone, and for negative ones."""
        old = np.asarray(ids, np.int64)
        inside = (old >= 0) & (old < self.size)
        found = np.where(old < 0, -1, old - self.size + len(self.ids))
        found[inside] = self._places[old[inside]]
        return found

    def old(self, ids: Any) -> np.ndarray:
        """Return the old ids, i64, of new ones, which are not negative."""
        new = np.asarray(ids, np.int64)
        inside = new < len(self.ids)
        found = new - len(self.ids) + self.size
        found[inside] = self.ids[new[inside]]
        return found

    def after(self, first: Kept) -> Kept:
        """Return the map to the vocabulary that ``first`` has cut, if this one is of what that has left."""
        return Kept(first.ids[self.ids], first.size)


def kept(metadata: Mapping[str, Any], documents: Mapping[str, Any]) -> Kept | None:
    """Return what a file says; ``None`` if its vocabulary is whole.

    Raises:
        FormatError: AIB-E707: ids are not increasing, or beyond the original.
    """
    if SIZE not in metadata or DOCUMENT not in documents:
        return None
    found = Kept(check(documents[DOCUMENT]), int(metadata[SIZE]))
    if len(found.ids) and int(found.ids[-1]) >= found.size:
        raise _bad(f"id {found.ids[-1]} of an original with {found.size} rows")
    return found


def check(data: bytes | memoryview) -> np.ndarray:
    """Check the document by itself, and return its ids, u32 [rows].

    Raises:
        FormatError: AIB-E707: they are not increasing, or not whole.
    """
    if len(data) % _U32.itemsize:
        raise _bad(f"{len(data)} bytes are not whole ids of 4 bytes")
    ids = np.frombuffer(data, _U32)
    if len(wrong := np.flatnonzero(ids[1:] <= ids[:-1])):
        at = int(wrong[0]) + 1
        raise _bad(f"id {ids[at]} after {ids[at - 1]}: ids increase")
    return ids


def _bad(what: str) -> FormatError:
    return FormatError(Problem("AIB-E707", f"document {DOCUMENT!r}: {what}"))
