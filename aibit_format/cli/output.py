"""Formats and prints results: sizes, tables, JSON, progress."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

_REDRAWN = 0.1  # seconds between updates of a progress bar
_COLUMNS = 80  # of a terminal whose width is unknown


def size(count: int) -> str:
    """Format a number of bytes for people: ``1.23 GB``; units are powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


class Terminal:
    """Wrap stdout or stderr so that nothing that is written reaches a terminal as a control sequence.

    Text from files, servers and libraries passes here: escapes are shown, not sent. So are characters that the stream's
    encoding lacks. ``progress`` is for what moves the cursor on purpose.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def progress(self, text: str) -> None:
        """Write text with carriage returns of our own, and no others."""
        for part in re.split("(\r)", text):
            self.stream.write(part) if part == "\r" else self.write(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# Controls but for line feed and tab, changes of writing direction, separators of lines, and what UTF-8 cannot hold.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # fmt: skip


@contextlib.contextmanager
def terminals() -> Iterator[None]:
    """Write to stdout and stderr through ``Terminal`` inside the context."""
    with contextlib.redirect_stdout(_wrapped(sys.stdout)), contextlib.redirect_stderr(_wrapped(sys.stderr)):
        yield


def _wrapped(stream: Any) -> Any:
    return stream if isinstance(stream, Terminal) else Terminal(stream)


def printable(text: str) -> str:
    """Escape the characters of text from a file that could control a terminal or reverse its writing direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Format a table with columns as wide as their contents; those whose indices are in ``right`` are right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [head, *rows])


def emit(value: Any) -> None:
    """Print ``value`` as JSON; numpy arrays become lists, and bytes hexadecimal text."""
    text = json.dumps(value, indent=2, default=_plain).replace("\x7f", "\\u007f")  # the one control that JSON leaves
    sys.stdout.write(f"{text}\n")


def show_written(paths: Sequence[str], as_json: bool, **more: Any) -> None:
    """Print the files written and their sizes: a line for each, or a JSON object with ``more`` and a list of them."""
    written = [{"path": path, "bytes": os.path.getsize(path)} for path in paths]
    if as_json:
        emit({**more, "files": written})
        return
    for entry in written:
        print(f"{entry['path']}  {size(entry['bytes'])}")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


class ProgressBar:
    """Show the progress of work if stderr is a terminal. Use it as a context; ``update`` is an ``on_progress``.

    Args:
        title: of the work, such as "converting".
        amount: formats an amount of work; bytes by default.
    """

    def __init__(self, title: str, amount: Callable[[int], str] = size) -> None:
        self._title, self._amount = title, amount
        self._shown = sys.stderr.isatty()
        self._started = self._next = time.monotonic()
        self._columns = 0  # length of the line on the terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._columns:
            self._write("")

    @property
    def update(self) -> Callable[[int, int, str], None] | None:
        """Return the function to pass as ``on_progress``; ``None`` if nothing is shown."""
        return self._update if self._shown else None

    def _update(self, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + _REDRAWN
        rate = done / max(now - self._started, 1e-3)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        share = done / total if total else 1
        amounts = f"{self._amount(done)} of {self._amount(total)}, {self._amount(round(rate))}/s{left}"
        self._write(f"{self._title} {share:4.0%}  {amounts}  {printable(name)[-40:]}")

    def _write(self, line: str) -> None:
        """Replace the line on the terminal by ``line``, cut so that the terminal's last column stays free."""
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
        except (OSError, ValueError):
            columns = _COLUMNS
        line = line[: columns - 1].rstrip()
        _wrapped(sys.stderr).progress(f"\r{line.ljust(min(self._columns, columns - 1))}\r{line}")
        sys.stderr.flush()
        self._columns = len(line)
