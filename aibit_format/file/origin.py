"""Brings planes of an open model into a file that is being written: as extents that both share, where possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ..container.tables import FileInfo, Plane
from ..io import extents
from ..io.lease import still
from ..io.mapped import Mapped
from .reader import File
from .sharded_reader import Opened

Put = Callable[[int, int], int]  # copies bytes (offset, length) of the planned file; returns how many that took

_RECORDS = ("scheme_table", "tensor_table", "plane_table")
_PLACES = {"name_offset", "offset"}  # in the string pool, which holds names of documents too, and in the file


class Origin:
    """Pair the planes of an open model with those of the same names in a planned file.

    Args:
        source: the model.
        info: from ``plan``; its tensors may be some of the model's.
        file: a descriptor of the planned file.
    """

    def __init__(self, source: Opened, info: FileInfo, file: int) -> None:
        self._source, self._info, self._file = source, info, file
        self._cloned: list[range] = []

    def part(self, name: str) -> File:
        """Return the file of the model that the tensor lies in."""
        return self._source.part(name)

    def planes(self, name: str) -> Iterator[tuple[Plane, Put | None]]:
        """Yield each plane of the planned tensor, and what brings bytes of it there if it is on a disk."""
        storage = self.part(name).storage
        for theirs, ours in self._pairs(name):
            on_disk = isinstance(storage, Mapped)
            yield ours, partial(self._copy, storage, theirs.offset - ours.offset) if on_disk else None

    def whole(self) -> File | None:
        """Return the file on a disk, if there is one, whose data region holds just the planned file's planes.

        They have the same tensors, each at the same place of the region, so its digests are those of this file.
        """
        parts = [part for part in self._source.parts if _same_data(part.tables, self._info)]
        return parts[0] if parts and isinstance(parts[0].storage, Mapped) else None

    def clone(self) -> list[range]:
        """Share with the model what can be shared; returns the ranges of the planned file that are, in order.

        Planes that follow each other without padding in both files are shared as one: most are no whole blocks.

        Raises:
            OSError: the disk is full, or failed.
            FormatError: AIB-E802: a file of the model has changed since it was opened.
        """
        found = []
        names: dict[Mapped, list[str]] = {}
        for name in filter(self._source.__contains__, self._info.stored_names):
            if isinstance(storage := self.part(name).storage, Mapped):
                names.setdefault(storage, []).append(name)
        for storage, of_part in names.items():
            with still(storage) as reading:
                for start, offset, length in self._runs(of_part):
                    found.append(extents.clone(storage, start, self._file, offset, length))
                reading.check_unchanged()
        self._cloned = sorted(filter(None, found), key=lambda shared: shared.start)
        return self._cloned

    def _copy(self, storage: Mapped, shift: int, offset: int, length: int) -> int:
        """Copy bytes, except those that are shared already, from ``offset + shift`` of the storage."""
        copied = 0
        for piece in extents.outside(self._cloned, offset, offset + length):
            extents.copy(storage, piece.start + shift, self._file, piece.start, len(piece))
            copied += len(piece)
        return copied

    def _pairs(self, name: str) -> Iterator[tuple[Plane, Plane]]:
        """Yield each plane of the tensor as it lies in the model, and in the planned file.

        They may be planes of other schemes, and are written in another way then, over what is shared.
        """
        return zip(self.part(name).info(name).planes, self._info.tensor(name).planes, strict=False)

    def _runs(self, names: list[str]) -> Iterator[list[int]]:
        """Yield [start, offset in the planned file, length] of planes that follow each other in both files."""
        pairs = sorted(
            (ours.offset, theirs.offset, ours.length) for name in names for theirs, ours in self._pairs(name)
        )
        run = [0, 0, 0]
        for offset, start, length in pairs:
            if run[0] + run[2] == start and run[1] + run[2] == offset:
                run[2] += length
            else:
                yield run
                run = [start, offset, length]
        yield run


def _same_data(a: FileInfo, b: FileInfo) -> bool:
    """Tell whether two files have the same tensors, stored in the same way and order, and so the same data region."""
    if (a.alignment, a.names, a.scheme_names) != (b.alignment, b.names, b.scheme_names):
        return False
    return all(
        np.array_equal(getattr(a, table)[field], getattr(b, table)[field])
        for table in _RECORDS
        for field in getattr(a, table).dtype.names
        if field not in _PLACES
    )
