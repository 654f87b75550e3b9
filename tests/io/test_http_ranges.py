"""Servers that are slow, broken or hostile: every failure is AIB-E803, in bounded time and memory."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc

import pytest

import aibit_format as aibit
from aibit_format.io import http_ranges
from aibit_format.io.http_ranges import HTTPRanges

CONTENT = bytes(range(256)) * 4096
TOTAL = 256 * 4096


class Server:
    """Answer every request by a function of the connection, the number of the request, and its range."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/m.aibit"
        self._closing = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while not self._closing:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection):
        try:
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                start, end = request.split(b"bytes=")[1].split(b"\r\n")[0].split(b"-")
                self.asked.append((int(start), int(end) + 1))
                self.answer(connection, len(self.asked) - 1, int(start), min(int(end) + 1, len(CONTENT)))
        except (OSError, IndexError):
            pass  # the client had enough

    def close(self):
        self._closing = True
        self._socket.close()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(http_ranges, "PATIENCE", 1.0)
    monkeypatch.setattr(http_ranges, "BACK_OFF", 0.02)


def head(start, end, *, total=TOTAL, tag="1", length=None, more=""):
    lines = ["HTTP/1.1 206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{total}", f'ETag: "{tag}"']
    if length is not False:
        lines.append(f"Content-Length: {end - start if length is None else length}")
    return ("\r\n".join(lines) + f"\r\n{more}\r\n").encode()


def good(connection, _, start, end):
    connection.sendall(head(start, end) + CONTENT[start:end])


def endless(connection, piece=bytes(1 << 16)):
    while True:
        connection.sendall(piece)


def drip(connection, text):
    for i in range(len(text)):
        connection.sendall(text[i : i + 1])
        time.sleep(0.05)


def test_a_good_server_is_read(serve):
    server = serve(good)
    ranges = HTTPRanges(server.url, 1000)
    assert (ranges.size, ranges.first) == (len(CONTENT), CONTENT[:1000])
    assert ranges.read(len(CONTENT) - 5, 5) == CONTENT[-5:] and ranges.read(len(CONTENT) - 5, 50) == CONTENT[-5:]


def chunked(connection, _, start, end):
    connection.sendall(head(start, end, length=False, more="Transfer-Encoding: chunked\r\n") + b"ten\r\nnonsense")


def endless_chunks(connection, _, start, end):
    connection.sendall(head(start, end, length=False, more="Transfer-Encoding: chunked\r\n"))
    while True:
        connection.sendall(b"1;" + b"x" * 60000 + b"\r\nx\r\n")


def endless_headers(connection, *_):
    connection.sendall(b"HTTP/1.1 206 Partial Content\r\n")
    endless(connection, b"X: y\r\n" * 1000)


def endless_continue(connection, *_):
    endless(connection, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


BROKEN = {
    "a byte now and then in the body": lambda c, _, start, end: (c.sendall(head(start, end)), drip(c, bytes(1000))),
    "a byte now and then in the headers": lambda c, *_: drip(c, b"HTTP/1.1 206 Partial" + b"x" * 1000),
    "nothing at all": lambda *_: time.sleep(3),
    "broken chunks": chunked,
    "chunks that are mostly extensions": endless_chunks,
    "headers without end": endless_headers,
    "100 Continue for ever": endless_continue,
    "a header line without end": lambda c, *_: (c.sendall(b"HTTP/1.1 206 OK\r\nX: "), endless(c, b"y" * 9999)),
    "no HTTP": lambda c, *_: c.sendall(b"\x1b[2J no HTTP\r\n\r\n"),
    "a status of letters": lambda c, *_: c.sendall(b"HTTP/1.1 OK\r\n\r\n"),
    "a length of letters": lambda c, *_: c.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: many\r\n\r\n"),
    "a total of many digits": lambda c, _, start, end: c.sendall(head(start, end, total="9" * 5000)),
    "another range": lambda c, _, start, end: c.sendall(head(start + 1, end + 1) + CONTENT[:100]),
    "a longer range": lambda c, _, start, end: c.sendall(head(start, end + 9) + CONTENT[:100]),
    "a range that ends before it begins": lambda c, _, start, end: c.sendall(head(start, start - 5)),
    "compressed": lambda c, _, a, b: c.sendall(head(a, b, more="Content-Encoding: gzip\r\n") + CONTENT[a:b]),
    "no range": lambda c, *_: (c.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), endless(c)),
    "closed at once": lambda c, *_: c.close(),
    "cut off": lambda c, _, start, end: c.sendall(head(start, end)),
    "404": lambda c, *_: c.sendall(b"HTTP/1.1 404 \x1b]0;evil\x07\r\nContent-Length: 0\r\n\r\n"),
    "503": lambda c, *_: c.sendall(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to itself": lambda c, *_: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: /m.aibit\r\n\r\n"),
    "a redirect to a file": lambda c, *_: c.sendall(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
    "a redirect to ftp": lambda c, *_: c.sendall(b"HTTP/1.1 301 Moved\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"),
    "a redirect with an endless body": lambda c, *_: (
        c.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\n\r\n"), endless(c)),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_server_does_wrong_is_an_error_in_time_and_little_memory(name, serve):
    server = serve(BROKEN[name])
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(aibit.FormatError) as caught:
        HTTPRanges(server.url, 1 << 18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "AIB-E803" and server.url in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert time.monotonic() - started < 5 and peak < 8 << 20


@pytest.mark.parametrize("url", ["http://[", "http://a b/", "http://127.0.0.1:port/x", "http:///x", "https://a\n/x"])
def test_a_url_that_is_none_is_said_to_be_unreadable(url):
    with pytest.raises(aibit.FormatError) as caught:
        aibit.open(url)
    assert caught.value.code == "AIB-E803"


def test_at_most_what_was_asked_is_read(serve):
    def longer(connection, _, start, end):
        connection.sendall(head(start, end, length=False) + CONTENT[start:end])
        endless(connection)

    ranges = HTTPRanges(serve(longer).url, 5000)
    assert ranges.first == CONTENT[:5000] and ranges.read(7, 100) == CONTENT[7:107]


def test_failures_that_pass_are_tried_again_from_where_they_were(serve):
    def flaky(connection, number, start, end):
        if number % 3 == 0:
            connection.sendall(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n")
        elif number % 3 == 1:
            connection.sendall(head(start, end) + CONTENT[start : (start + end) // 2])
        else:
            good(connection, number, start, end)

    server = serve(flaky)
    assert HTTPRanges(server.url, 1000).first == CONTENT[:1000]
    assert server.asked == [(0, 1000), (0, 1000), (500, 1000)]


def test_a_server_that_gives_less_than_asked_is_asked_for_the_rest(serve):
    server = serve(lambda c, _, start, end: good(c, 0, start, min(end, start + 400)))
    assert HTTPRanges(server.url, 1000).first == CONTENT[:1000] and len(server.asked) == 3


def test_what_never_passes_is_not_tried_again(serve):
    server = serve(BROKEN["404"])
    with pytest.raises(aibit.FormatError, match="status 404 Not Found"):
        HTTPRanges(server.url, 1000)
    assert len(server.asked) == 1


@pytest.mark.parametrize("change", [{"total": 5}, {"total": 1 << 62}, {"tag": "2"}], ids=str)
def test_the_first_total_and_version_hold(change, serve):
    def changing(connection, number, start, end):
        connection.sendall(head(start, end, **(change if number else {})) + CONTENT[start:end])

    ranges = HTTPRanges(serve(changing).url, 1000)
    with pytest.raises(aibit.FormatError) as caught:
        ranges.read(2, 2)
    assert caught.value.code == "AIB-E802" and ranges.size == len(CONTENT)


def test_a_redirect_over_http_is_followed(serve):
    target = serve(good)
    moved = serve(lambda c, *_: c.sendall(f"HTTP/1.1 302 Found\r\nLocation: {target.url}\r\n\r\n".encode()))
    assert HTTPRanges(moved.url, 1000).first == CONTENT[:1000]
