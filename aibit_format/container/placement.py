"""Computes where every byte of a file lies, from the sizes alone.

The writer places with it and the validator compares with it, so a file's offsets are not a matter of choice.
Documents follow the front matter. Then comes the data region: first a pool, aligned to 64 bytes, of scales and of
planes smaller than the file's alignment; then the other planes, each at that alignment. Both are in the order of the
plane table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import checksums, layout
from .layout import align


@dataclass(frozen=True, slots=True)
class Region:
    """Delimit bytes under checksums: the documents, or the data. ``first`` is the index of its first leaf."""

    start: int
    end: int
    first: int

    @property
    def leaves(self) -> int:
        """Return the number of leaves that cover it."""
        return checksums.leaf_count(self.end - self.start)

    def leaf(self, i: int) -> tuple[int, int]:
        """Return where its leaf ``i`` starts and ends in the file."""
        start = self.start + i * layout.LEAF
        return start, min(start + layout.LEAF, self.end)

    def covering(self, offset: int, length: int) -> range:
        """Return the indices of its leaves that overlap ``length`` bytes at ``offset``."""
        return range((offset - self.start) // layout.LEAF, checksums.leaf_count(offset - self.start + length))


@dataclass(frozen=True)
class Placement:
    """Hold offsets from the start of the file, and the bounds of the two regions after the front matter."""

    document_offsets: np.ndarray  # u64 [documents]
    documents_start: int
    documents_end: int
    data_start: int
    data_end: int
    plane_offsets: np.ndarray  # u64 [planes]

    @property
    def regions(self) -> tuple[Region, Region]:
        """Return the regions of the documents and of the data."""
        documents = Region(self.documents_start, self.documents_end, 0)
        return documents, Region(self.data_start, self.data_end, documents.leaves)

    @property
    def leaves(self) -> int:
        """Return the length of the leaf table."""
        return sum(region.leaves for region in self.regions)

    def region(self, offset: int) -> Region:
        """Return the region that the byte at ``offset`` lies in."""
        return self.regions[offset >= self.documents_end]


def place(
    front_matter_length: int, documents: np.ndarray, planes: np.ndarray, roles: np.ndarray, alignment: int
) -> Placement:
    """Place documents and planes of these lengths.

    Args:
        front_matter_length: bytes after the header, a multiple of 64.
        documents, planes: u64 lengths in table order. Their sum must be below 2^63; the caller checks this.
        roles: u16, of the planes.
        alignment: of bulk planes, one of ``layout.ALIGNMENTS``.
    """
    start = layout.HEADER.sizeof() + front_matter_length
    document_offsets, documents_end = _pack(documents, start, layout.ALIGNMENT)
    documents_end = align(documents_end, layout.ALIGNMENT)

    pooled = layout.pooled(roles, planes, alignment)
    pool, pool_length = _pack(planes[pooled], 0, layout.ALIGNMENT)
    bulk, length = _pack(planes[~pooled], align(pool_length, alignment), alignment)
    if not len(bulk):
        alignment, length = layout.ALIGNMENT, pool_length
    offsets = np.empty(len(planes), np.uint64)
    offsets[pooled], offsets[~pooled] = pool, bulk

    data_start = documents_end
    if length:
        data_start = align(documents_end, max(alignment, layout.LARGE_ALIGNMENT if length >= layout.LARGE_DATA else 0))
    return Placement(
        document_offsets, start, documents_end, data_start, data_start + length, offsets + np.uint64(data_start)
    )


def _pack(lengths: np.ndarray, start: int, alignment: int) -> tuple[np.ndarray, int]:
    """Return the offsets of pieces laid one after another from ``start``, and where the last one ends."""
    if not len(lengths):
        return np.zeros(0, np.uint64), start
    lengths = lengths.astype(np.uint64)
    mask = np.uint64(alignment - 1)
    padded = (lengths + mask) & ~mask
    offsets = np.uint64(start) + np.cumsum(padded, dtype=np.uint64) - padded
    return offsets, int(offsets[-1]) + int(lengths[-1])
