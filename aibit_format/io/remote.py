"""Reads a remote file by ranges: over HTTP, or through fsspec where that is installed.

Opening takes one read, or two if the front matter is longer than the first. Each later request, for a tensor or a
layer, is one read that fetches nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

from ..errors import FormatError, MissingPackageError, Problem
from .mapped import Copies

FIRST = 1 << 18  # bytes of the first read: header and front matter of a model of about two thousand tensors
_TIMEOUT = 30  # seconds without an answer

Fetch = Callable[[int, int], bytes]  # (start, length) -> bytes, fewer at the end of the file


class Ranged:
    """Serve the bytes of the file at a URL, as copies. ``reads`` counts the ranges requested.

    A whole file is verified in chunks.

    Raises:
        FormatError: AIB-E803: it cannot be read, or the server does not support ranges.
        MissingPackageError: the URL is neither http nor https, and fsspec is not installed.
    """

    chunk_size = 64 << 20

    def __init__(self, url: str) -> None:
        self.path: str | None = url
        self.reads = 0
        opened = _over_http if urlsplit(url).scheme in ("http", "https") else _through_fsspec
        self._fetch, self.size, self._first = opened(url)
        self.reads += 1
        self._last = 0, b""  # a document is read twice, to check it and to return it: it is fetched once

    def read_at(self, offset: int, length: int) -> np.ndarray:
        for start, data in ((0, self._first), self._last):
            if start <= offset and offset + length <= start + len(data):
                return np.frombuffer(data, np.uint8)[offset - start : offset - start + length]
        known = self._first[offset:]  # bytes of the first read are not fetched again
        data = known + self._fetch(offset + len(known), length - len(known))
        self.reads += 1
        if len(data) != length:
            raise FormatError(Problem("AIB-E803", "bytes of a range", None, None, offset, length, len(data)), self.path)
        self._last = offset, data
        return np.frombuffer(data, np.uint8)

    def writable(self) -> Copies:
        return Copies(self)  # what is kept of earlier reads is not given out to be written to

    def close(self) -> None:
        return None

    def check_unchanged(self) -> None:
        return None  # each answer is checked when it arrives


def _over_http(url: str) -> tuple[Fetch, int, bytes]:
    """Return a function that reads ranges of ``url``, the file's size, and its first bytes."""
    tag: list[str | None] = []

    def ask(start: int, length: int) -> tuple[bytes, int]:
        wanted = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        request = Request(url, headers=wanted)  # noqa: S310 - http or https, see Ranged
        try:
            with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
                found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
                if answer.status != 206 or not found or int(found[1]) != start:
                    raise _unreadable(url, f"the server does not give ranges (status {answer.status})")
                version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
                if tag and tag[0] != version:
                    raise FormatError(
                        Problem("AIB-E802", "file changed after it was opened", expected=tag[0], found=version), url
                    )
                tag[:] = [version]
                return answer.read(), int(found[2])
        except HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range") == "bytes */0":
                return b"", 0  # an empty file has no ranges; the parser refuses it as empty
            raise _unreadable(url, f"{error.code} {error.reason}") from error
        except (URLError, OSError) as error:
            raise _unreadable(url, str(getattr(error, "reason", error))) from error

    first, size = ask(0, FIRST)
    return lambda start, length: ask(start, length)[0], size, first


def _through_fsspec(url: str) -> tuple[Fetch, int, bytes]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingPackageError(f"{url}: needs fsspec: pip install 'aibit-format[remote]'") from error
    try:
        system, path = url_to_fs(url)
        size = int(system.size(path))
        fetch: Any = system.cat_file
        first = fetch(path, 0, min(FIRST, size))
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(url, str(error) or type(error).__name__) from error

    def read(start: int, length: int) -> bytes:
        try:
            return fetch(path, start, start + length)
        except OSError as error:
            raise _unreadable(url, str(error)) from error

    return read, size, first


def _unreadable(url: str, what: str) -> FormatError:
    return FormatError(Problem("AIB-E803", f"cannot be read: {what}"), url)
