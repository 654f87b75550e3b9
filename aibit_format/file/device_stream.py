"""Streams chunks of a file to a device in one pass, with several threads and a ring of reused buffers.

A thread takes the next piece of the file, waits until one of its slots is free, reads the piece into it, checks the
digests of its leaves if asked to, and sends it off; during the transfer, the thread fills its next slot. Bytes in the
page cache are copied from there; others are read around it (O_DIRECT), straight into the slot. Reading, hashing and
sending all release the GIL.

A ``Link`` makes and sends slots: see ``torch/load/arena.py``.
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

PAGE = 4096  # offsets, lengths and addresses of direct reads are multiples of it
_GAP = 1 << 16  # bytes between two planes that are brought along, so that one chunk does not become two


class Slot(Protocol):
    """Hold one buffer of the ring, which belongs to one thread."""

    memory: np.ndarray  # u8, beginning at a page

    def wait(self) -> None:
        """Return once the bytes last sent from it have left it."""
        ...

    def send(self, first: int, count: int, at: int) -> None:
        """Start sending ``count`` bytes, from its byte ``first`` on, to byte ``at`` of the link's target."""
        ...


class Link(Protocol):
    """Transfer bytes from this machine's memory to a target, such as a GPU."""

    def slot(self, size: int) -> Slot:
        """Create a slot of ``size`` bytes; each thread creates its own."""
        ...

    def finish(self) -> None:
        """Return once everything that was sent has arrived."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """Set how many threads read, how many slots they share, and how many bytes a slot holds: whole leaves."""

    threads: int = 8
    slots: int = 16
    piece: int = 4 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= self.slots or self.piece < LEAF or self.piece % LEAF:
            raise ValueError(f"{self}: at least a thread, a slot for each, pieces of whole leaves ({LEAF} bytes)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Describe bytes ``start`` to ``end`` of a file, and where they begin in the target."""

    start: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Describe one read, ``length`` bytes of the file at ``offset``, and which of them are sent where."""

    offset: int
    length: int
    first: int  # index of the first byte that is sent, among those read
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Map the requested planes of a file to a target: in the same order, without the bytes between them."""

    chunks: tuple[Chunk, ...]
    size: int

    @classmethod
    def of(cls, planes: Iterable[Plane], region: Region) -> ArenaLayout:
        """Join the planes into chunks. Each begins at a page, counted from where the region begins."""
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
        """Return the offset of these bytes of the file in the target; ``None`` if not all of them are there."""
        i = bisect_right(self.chunks, offset, key=lambda chunk: chunk.start) - 1
        if i < 0 or offset + length > self.chunks[i].end:
            return None
        return self.chunks[i].at + offset - self.chunks[i].start

    def pieces(self, region: Region, size: int, unit: int) -> Iterator[Piece]:
        """Cut the chunks at multiples of ``size``, counted from where the region begins.

        Args:
            unit: reads are multiples of this many bytes: pages, or leaves. It divides ``size``.
        """
        for chunk in self.chunks:
            start = chunk.start
            while start < chunk.end:
                stop = min(chunk.end, start + size - (start - region.start) % size)
                low = start - (start - region.start) % unit
                high = min(region.end, region.start + align(stop - region.start, unit))
                yield Piece(low, high - low, start - low, stop - start, chunk.at + start - chunk.start)
                start = stop


@dataclass(slots=True)
class Streamed:
    """Count bytes: all that were read, and those of them that were read around the page cache."""

    read: int = 0
    direct: int = 0


class DirectReader:
    """Read bytes of a file into given memory, from several threads at once.

    Args:
        storage: the file's bytes. A mapped file is read, not touched through the mapping: absent pages would be
            fetched one by one, and a page that is gone would kill the process.
        cached: bytes of the file before this offset are always read through the page cache.
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
        """Read into the beginning of ``memory``; returns whether that went around the page cache.

        Raises:
            FormatError: AIB-E802: the file has become shorter; AIB-E803: it cannot be read.
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
        """Read around the page cache and return the bytes read: none if they are cached, or if the system cannot."""
        if self._direct is None or self._probe is None or offset < self._cached or offset % PAGE:
            return 0
        whole = align(length, PAGE)  # there is nothing beyond the end of the file, but a direct read must ask for it
        if whole > len(memory) or is_resident(self._probe, offset, length):
            return 0
        try:
            return min(length, os.preadv(self._direct, [memory[:whole].data], offset))
        except OSError:  # this file system does not accept the alignment or the memory: read the usual way
            return 0


def _reopened(file: int | None) -> tuple[int | None, int | None]:
    """Open the file twice more: to ask what is in memory, and for direct reads; ``None`` where that is impossible.

    Asking about a page may start read-ahead; the first is marked for random access, which prevents that.
    """
    if file is None or not hasattr(os, "O_DIRECT") or not hasattr(os, "RWF_NOWAIT"):
        return None, None
    again = f"/proc/self/fd/{file}"  # the file itself, whatever its path names now
    try:
        direct = os.open(again, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # no /proc, or not on this file system
        return None, None
    probe = os.open(again, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(probe, 0, 0, os.POSIX_FADV_RANDOM)
    return probe, direct


def stream(file: File, layout: ArenaLayout, link: Link, ring: Ring, *, cached: int = 0) -> Streamed:
    """Send the parts of the file's data region in ``layout`` over the link, and return once they have arrived.

    If the file checks what is read, each leaf is checked on its way, in the memory that is sent.

    Args:
        cached: bytes of the file before this offset stay in the page cache, because they will be used there.

    Raises:
        FormatError: AIB-E602 for damage, naming tensor and offset; AIB-E802 and AIB-E803, see ``DirectReader``.
    """
    region, check = file.data, file.checks_reads
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
            stop.set()  # the other threads stop after their current piece
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
        link.finish()  # also after an error: pending transfers still need their slots and the target
    file.storage.check_unchanged()
    return total
