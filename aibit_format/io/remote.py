"""Reads a remote file by ranges: over HTTP, or through fsspec where that is installed.

Opening takes one read, or two if the front matter is longer than the first. A request for a tensor alone is one read
for each plane that fetches nothing else. Reads that follow each other, as those of a load do, are done ahead: each is
longer than the ones before it together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import FormatError, MissingPackageError, Problem
from . import http_ranges
from .http_ranges import HTTPRanges, unreadable
from .mapped import Copies

FIRST = 1 << 18  # bytes of the first read: header and front matter of a model of about two thousand tensors
_NEAR = 1 << 16  # bytes between two reads that follow each other: padding
_LEAST_AHEAD = 1 << 16  # bytes of a read ahead
_MOST_AHEAD = 32 << 20
_KEPT = 64 << 20  # bytes that are kept of earlier reads

Fetch = Callable[[int, int], bytes]  # (start, length) -> bytes, fewer at the end of the file


@dataclass(frozen=True, slots=True)
class _Piece:
    """Hold the bytes of one read, and how many reads and bytes have followed each other up to it."""

    start: int
    data: bytes
    reads: int = 0
    total: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Ranged:
    """Serve the bytes of the file at a URL, as copies. ``reads`` counts the ranges requested.

    A whole file is verified in chunks.

    Raises:
        FormatError: AIB-E803: it cannot be read, or the server does not support ranges.
        MissingPackageError: the URL is neither http nor https, and fsspec is not installed.
    """

    chunk_size = 64 << 20
    fixed = False

    def __init__(self, url: str) -> None:
        self.path: str | None = url
        self._fetch, self.size, first = (_over_http if _is_http(url) else _through_fsspec)(url)
        self.reads = 1
        self._first = _Piece(0, first)
        self._kept: tuple[_Piece, ...] = ()  # latest last; replaced as a whole, as threads read it

    def read_at(self, offset: int, length: int) -> np.ndarray:
        end = offset + length
        pieces = (self._first, *self._kept)
        for piece in pieces:
            if piece.start <= offset and end <= piece.end:
                return np.frombuffer(piece.data, np.uint8)[offset - piece.start : end - piece.start]
        known = next((p.data[offset - p.start :] for p in pieces if p.start <= offset < p.end), b"")
        before = next((p for p in reversed(self._kept) if p.start <= offset <= p.end + _NEAR), _Piece(offset, b""))
        ahead = min(max(2 * before.total, _LEAST_AHEAD), _MOST_AHEAD, self.chunk_size) if before.reads > 1 else 0
        wanted = max(min(offset + max(length, ahead), self.size), end) - offset - len(known)
        data = known + self._fetch(offset + len(known), wanted)
        self.reads += 1
        if len(data) != len(known) + wanted:
            raise FormatError(Problem("AIB-E803", "bytes of a range", None, None, offset, length, len(data)), self.path)
        self._keep(_Piece(offset, data, before.reads + 1, before.total + len(data)))
        return np.frombuffer(data, np.uint8)[:length]

    def _keep(self, piece: _Piece) -> None:
        """Keep a piece and the latest before it, up to a number of bytes."""
        left, kept = _KEPT - len(piece.data), [piece]
        for earlier in reversed(self._kept):
            left -= len(earlier.data)
            if left < 0:
                break
            kept.append(earlier)
        self._kept = tuple(reversed(kept))

    def writable(self) -> Copies:
        return Copies(self)  # what is kept of earlier reads is not given out to be written to

    def close(self) -> None:
        return None

    def check_unchanged(self) -> None:
        return None  # each answer is checked when it arrives


def _is_http(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError as error:
        raise unreadable(url, str(error)) from error


def _over_http(url: str) -> tuple[Fetch, int, bytes]:
    """Return a function that reads ranges of ``url``, the file's size, and its first bytes."""
    ranges = HTTPRanges(url, FIRST)
    return ranges.read, ranges.size, ranges.first


def _through_fsspec(url: str) -> tuple[Fetch, int, bytes]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingPackageError(f"{url}: needs fsspec: pip install 'aibit-format[remote]'") from error

    def read(start: int, length: int) -> bytes:
        data = _in_time(url, lambda: system.cat_file(path, start, start + length), length)
        if not isinstance(data, bytes) or len(data) > length:
            raise unreadable(url, f"{type(system).__name__} gave more than the {length} bytes that were asked for")
        return data

    system, path = _in_time(url, lambda: url_to_fs(url))
    size = _in_time(url, lambda: int(system.size(path)))
    return read, size, read(0, min(FIRST, size))


def _in_time(url: str, call: Callable[[], Any], length: int = 0) -> Any:
    """Return what ``call`` returns, waiting as long as for an HTTP server; file systems have no deadline of their own.

    Raises:
        FormatError: AIB-E803: it failed, or takes too long; its thread is then left behind.
    """
    answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # of any kind: file systems are plug-ins
            answers.put((None, error))

    thread = Thread(target=work, daemon=True, name="aibit-remote")
    thread.start()
    seconds = http_ranges.PATIENCE + length / http_ranges.SLOWEST
    thread.join(seconds)
    if answers.empty():
        raise unreadable(url, f"no answer in {seconds:.0f} s")
    value, failure = answers.get()
    if failure is not None:
        raise unreadable(url, str(failure) or type(failure).__name__) from failure
    return value
