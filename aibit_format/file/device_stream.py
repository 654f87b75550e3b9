"""Bringing chunks of a file to a device in one pass: several threads, a ring of buffers that are used again.

A thread takes the next piece of the file, waits until one of its slots is free, reads the piece into it, checks the
digests of its leaves if that is wanted, and sends it off; while it travels, the thread fills its next slot. What is in
the page cache is copied from there; what is not is read around it (O_DIRECT), straight into the slot. Reading, hashing
and sending all let go of the interpreter's lock.

How slots are made and sent is the ``Link``'s: see ``torch/arena.py``.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from threading import Event, Lock
from typing import Protocol

import numpy as np

from ..container.layout import LEAF, align
from ..container.placement import Region
from ..container.tables import Plane
from ..errors import FormatError, Problem
from ..io.mapped import Mapped, Storage
from ..io.readahead import is_resident
from .reader import File

PAGE = 4096  # offsets, lengths and memory of direct reads are multiples of it
_GAP = 1 << 16  # bytes between two planes that are brought along, so that one chunk does not become two


class Slot(Protocol):
    """A buffer of the ring; one thread's."""

    memory: np.ndarray  # u8, beginning at a page

    def wait(self) -> None:
        """Return when what was last sent from it has left it."""
        ...

    def send(self, first: int, count: int, at: int) -> None:
        """Start to bring ``count`` bytes, from its byte ``first`` on, to byte ``at`` of the link's target."""
        ...


class Link(Protocol):
    """The way from this machine's memory to where the bytes are wanted."""

    def slot(self, size: int) -> Slot:
        """A new slot of ``size`` bytes; threads make their own."""
        ...

    def finish(self) -> None:
        """Return when everything that was sent has arrived."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """How many threads read, how many slots they have together, and how many bytes a slot holds: whole leaves."""

    threads: int = 8
    slots: int = 16
    piece: int = 4 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= self.slots or self.piece < LEAF or self.piece % LEAF:
            raise ValueError(f"{self}: at least a thread, a slot for each, pieces of whole leaves ({LEAF} bytes)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes ``start`` to ``end`` of a file, and where they begin in the target."""

    start: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read at a time, ``length`` bytes of the file at ``offset``, and which of them go where."""

    offset: int
    length: int
    first: int  # of the bytes that were read: what is sent begins here
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Where the planes that are wanted lie in the target: as in the file, but for what is between them."""

    chunks: tuple[Chunk, ...]
    size: int

    @classmethod
    def of(cls, planes: Iterable[Plane], region: Region) -> ArenaLayout:
        """The planes joined to chunks. Each begins at a page, counted from where the region begins."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted({(plane.offset, plane.offset + plane.length) for plane in planes if plane.length}):
            start -= (start - region.start) % PAGE
            if joined and start - joined[-1][1] < _GAP:
                start, before = joined.pop()
                end = max(end, before)
            joined.append((start, end))
        chunks, at = [], 0
        for start, end in joined:
            chunks.append(Chunk(start, end, at))
            at += align(end - start, PAGE)
        return cls(tuple(chunks), at)

    def place(self, offset: int, length: int) -> int | None:
        """Where these bytes of the file are in the target; None if not all of them are there."""
        i = bisect_right(self.chunks, offset, key=lambda chunk: chunk.start) - 1
        if i < 0 or offset + length > self.chunks[i].end:
            return None
        return self.chunks[i].at + offset - self.chunks[i].start

    def pieces(self, region: Region, size: int, unit: int) -> Iterator[Piece]:
        """The chunks cut at multiples of ``size``, counted from where the region begins.

        Args:
            unit: what is read is whole units of this many bytes: pages, or leaves. It divides ``size``.
        """
        for chunk in self.chunks:
            start = chunk.start
            while start < chunk.end:
                stop = min(chunk.end, start + size - (start - region.start) % size)
                low = start - (start - region.start) % unit
                high = min(region.end, region.start + align(stop - region.start, unit))
                yield Piece(low, high - low, start - low, stop - start, chunk.at + start - chunk.start)
                start = stop


Layout = ArenaLayout  # the name that torch/load/arena.py still imports


@dataclass(slots=True)
class Streamed:
    """What came, in bytes: all that was read, and how much of it around the page cache."""

    read: int = 0
    direct: int = 0


class DirectReader:
    """Reads bytes of a file into memory that it is given; several threads use it at once.

    Args:
        storage: the file's bytes. Of a mapped file they are read, not touched through the mapping: pages that are not
            there would come one by one, and one that is gone would end the process.
        cached: bytes of the file before this one are always read through the page cache.
    """

    def __init__(self, storage: Storage, cached: int = 0) -> None:
        self._storage, self._cached = storage, cached
        self._file = storage.fileno() if isinstance(storage, Mapped) and hasattr(os, "preadv") else None
        self._probe, self._direct = _reopened(self._file)

    def close(self) -> None:
        for file in (self._probe, self._direct):
            if file is not None:
                os.close(file)
        self._probe = self._direct = None

    def read(self, offset: int, length: int, memory: np.ndarray) -> bool:
        """Read into the beginning of ``memory``; whether that went around the page cache.

        Raises:
            FormatError: AIB-E802: the file ends earlier than it did; AIB-E803: it cannot be read.
        """
        if self._file is None:
            memory[:length] = self._storage.read_at(offset, length)
            return False
        try:
            got = self._around(offset, length, memory)
            direct = got > 0
            while got < length:
                count = os.preadv(self._file, [memory[got:length].data], offset + got)
                if not count:
                    what = "file ends earlier than when it was opened"
                    problem = Problem("AIB-E802", what, None, None, offset, length, got)
                    raise FormatError(problem, self._storage.path)
                got += count
        except OSError as error:
            problem = Problem("AIB-E803", f"cannot be read: {error.strerror}", offset=offset)
            raise FormatError(problem, self._storage.path) from error
        return direct

    def _around(self, offset: int, length: int, memory: np.ndarray) -> int:
        """How many of the bytes came around the page cache: none if they are in it, or if the system cannot."""
        if self._direct is None or self._probe is None or offset < self._cached or offset % PAGE:
            return 0
        whole = align(length, PAGE)  # beyond the end of the file there is nothing to read, but it must be asked for
        if whole > len(memory) or is_resident(self._probe, offset, length):
            return 0
        try:
            return min(length, os.preadv(self._direct, [memory[:whole].data], offset))
        except OSError:  # of an alignment, or of memory, that this file system does not take: the other way will do
            return 0


def _reopened(file: int | None) -> tuple[int | None, int | None]:
    """The same file opened twice more: to ask what is in memory, and for direct reads. None where there is no such way.

    Asking for a page may start reading ahead of it; told that access is random, the system leaves that.
    """
    if file is None or not hasattr(os, "O_DIRECT") or not hasattr(os, "RWF_NOWAIT"):
        return None, None
    again = f"/proc/self/fd/{file}"  # the file itself, whatever its name now stands for
    try:
        direct = os.open(again, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # no /proc, or not on this file system
        return None, None
    probe = os.open(again, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(probe, 0, 0, os.POSIX_FADV_RANDOM)
    return probe, direct


def stream(file: File, layout: ArenaLayout, link: Link, ring: Ring, *, cached: int = 0) -> Streamed:
    """Bring what ``layout`` names of the file's data region over the link, and return when it has arrived.

    At level "touched" each leaf is checked on its way, from the memory that is sent.

    Args:
        cached: bytes of the file before this one stay in the page cache: somebody will look at them there.

    Raises:
        FormatError: AIB-E602 for damage, naming tensor and offset; AIB-E802 and AIB-E803, see ``DirectReader``.
    """
    region, check = file.data, file.level == "touched"
    todo = layout.pieces(region, ring.piece, LEAF if check else PAGE)
    taking, stop, source, total = Lock(), Event(), DirectReader(file.storage, cached), Streamed()

    def work(count: int) -> None:
        try:
            slots = cycle([link.slot(ring.piece) for _ in range(count)])
            while not stop.is_set():
                with taking:
                    piece = next(todo, None)
                if piece is None:
                    return
                slot = next(slots)
                slot.wait()
                direct = source.read(piece.offset, piece.length, slot.memory)
                if check:
                    file.check_brought(piece.offset, slot.memory[: piece.length])
                slot.send(piece.first, piece.count, piece.at)
                with taking:
                    total.read += piece.length
                    total.direct += direct * piece.length
        except BaseException:
            stop.set()  # the others end with the piece they have
            raise

    file.storage.check_unchanged()
    threads = min(ring.threads, max(1, -(-layout.size // ring.piece)))
    try:
        with ThreadPoolExecutor(threads, "aibit-stream") as pool:
            try:
                for ended in [pool.submit(work, len(range(i, ring.slots, ring.threads))) for i in range(threads)]:
                    ended.result()
            finally:
                stop.set()
    finally:
        source.close()
        link.finish()  # also after an error: what is on its way still needs its slot and its target
    file.storage.check_unchanged()
    return total
