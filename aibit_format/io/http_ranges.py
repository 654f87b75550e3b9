"""Reads ranges of a file from an HTTP server that may be slow, broken or hostile.

At most the bytes that were asked for are read, and all attempts together have a deadline. What the first answer says
of the file's size and version must hold for all later ones.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import time
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, responses
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    AbstractHTTPHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from ..errors import FormatError, Problem

IDLE = 30.0  # seconds without a byte
PATIENCE = 60.0  # seconds for a request with all its attempts, to which the time for its bytes is added
SLOWEST = 100_000  # bytes a second
RETRIES = 4  # attempts in a row that bring nothing
BACK_OFF = 0.25  # seconds before the second attempt, doubled for each further one
_PIECE = 1 << 20  # bytes read at a time
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be different in a moment
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class HTTPRanges:
    """Read ranges of the file at an http or https URL.

    ``size`` is the file's, in bytes; ``first`` holds the first bytes, at most ``length`` of them.

    Raises:
        FormatError: AIB-E803: it cannot be read, or the server does not give ranges.
    """

    def __init__(self, url: str, length: int) -> None:
        self.url = url
        self.size = -1  # not known yet
        self._version: str | None = None  # ETag, or else the time of the last change
        self.first = self.read(0, length)

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes of a range, fewer at the end of the file. Failures that may pass are tried again.

        Raises:
            FormatError: AIB-E803: it cannot be read; AIB-E802: the file is another one than at the first read.
        """
        deadline = time.monotonic() + PATIENCE + length / SLOWEST
        found, failures = bytearray(), 0
        while self.size < 0 or len(found) < min(length, self.size - start):
            before = len(found)
            try:
                self._read_into(found, start + before, length - before, deadline)
            except FormatError:
                raise
            except Exception as error:  # urllib, http.client, ssl and email parse what the server says
                failures = 1 if len(found) > before else failures + 1
                wait = BACK_OFF * 2 ** (failures - 1)
                late = time.monotonic() + wait > deadline
                if late or failures >= RETRIES or not _passes(error):
                    raise unreadable(self.url, _reason(error)) from error
                time.sleep(wait)
            else:
                failures = 0
                if self.size == 0:
                    break
        return bytes(found)

    def _read_into(self, found: bytearray, start: int, length: int, deadline: float) -> None:
        """Make one attempt: append what it brings to ``found``, also where it fails later."""
        wanted = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        request = Request(self.url, headers=wanted)  # noqa: S310 - the opener knows http and https only
        try:
            answer = _opener(deadline).open(request, timeout=max(min(IDLE, deadline - time.monotonic()), 1e-3))
        except HTTPError as error:
            error.close()
            if error.code == 416 and error.headers.get("Content-Range") == "bytes */0":
                self._hold(0, self._version)  # an empty file has no ranges; the parser refuses it as empty
                return
            raise
        with answer:
            span = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not span:
                raise unreadable(self.url, f"the server does not give ranges (status {answer.status})")
            begin, last, size = map(int, span.groups())
            self._hold(size, answer.headers.get("ETag") or answer.headers.get("Last-Modified"))
            if begin != start or not start <= last < min(start + length, size):
                raise unreadable(self.url, f"the server gave bytes {begin} to {last} of {size}, from {start} on wanted")
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise unreadable(self.url, "the server sends an encoded file")
            end = len(found) + last + 1 - start
            while len(found) < end:
                piece = answer.read(min(_PIECE, end - len(found)))
                if not piece:
                    raise http.client.IncompleteRead(b"", end - len(found))
                found += piece

    def _hold(self, size: int, version: str | None) -> None:
        """Keep the first size and version, and compare later ones with them."""
        if self.size < 0:
            self.size, self._version = size, version
        for expected, found in ((self._version, version), (self.size, size)):
            if expected != found:
                problem = Problem("AIB-E802", "file changed after it was opened", expected=expected, found=found)
                raise FormatError(problem, self.url)


def unreadable(url: str, what: str) -> FormatError:
    """Return the error for a URL that cannot be read; ``what`` may be a server's words: they are escaped and cut."""
    return FormatError(Problem("AIB-E803", f"cannot be read: {repr(what[:200])[1:-1]}"), url)


def _passes(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    if isinstance(error, HTTPError):
        return error.code in _PASSING
    cause = error.reason if isinstance(error, URLError) else error
    return isinstance(cause, (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionResetError,
                              ConnectionAbortedError, BrokenPipeError, TimeoutError))  # fmt: skip


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"status {error.code} {responses.get(error.code, '')}".rstrip()
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended before the last byte"
    if isinstance(cause, HTTPException):
        return f"not an answer in HTTP: {type(cause).__name__}: {cause}"
    return str(cause) or type(cause).__name__


class _Timed(io.RawIOBase):
    """Read from a socket up to a deadline: a timeout alone starts anew with every byte."""

    def __init__(self, stream: Any, sock: socket.socket, deadline: float) -> None:
        self._stream, self._socket, self._deadline = stream, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline for the whole answer has passed")
        self._socket.settimeout(min(left, IDLE))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp: Any = io.BufferedReader(_Timed(self.fp.detach(), sock, deadline))


class _Handler(AbstractHTTPHandler):
    """Open connections whose answers end at a deadline."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._answers = partial(_Response, deadline=deadline)

    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self._connect, HTTPConnection), request)

    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self._connect, HTTPSConnection), request)

    http_request = https_request = AbstractHTTPHandler.do_request_

    def _connect(self, family: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        connection = family(host, **options)
        connection.response_class = self._answers  # pyright: ignore[reportAttributeAccessIssue]
        return connection


class _Redirects(HTTPRedirectHandler):
    """Follow redirects to http and https, and from https to https alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        scheme, before = urlsplit(newurl).scheme, urlsplit(req.full_url).scheme
        if scheme not in ("http", "https") or (before == "https" and scheme != "https"):
            raise unreadable(req.full_url, f"the server redirects from {before} to {scheme}")
        fp.close()  # urllib would read the whole body, however long
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(deadline: float) -> OpenerDirector:
    """Return an opener for http and https, and nothing else that a redirect could name."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(), _Handler(deadline), _Redirects(), HTTPDefaultErrorHandler(), HTTPErrorProcessor(),
                    UnknownHandler()):  # fmt: skip
        opener.add_handler(handler)
    return opener
