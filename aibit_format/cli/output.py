"""How results look: sizes, tables, JSON, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

_REDRAWN = 0.1  # seconds between two drawings of a progress bar
_COLUMNS = 80  # of a terminal that does not say


def size(count: int) -> str:
    """Bytes for a person: ``1.23 GB``, in powers of ten, as disks are sold."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def printable(text: str) -> str:
    """Text from a file with everything escaped that could move a terminal's cursor or turn its writing round."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as what is in them; those in ``right`` are right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [head, *rows])


def emit(value: Any) -> None:
    """Print a result as JSON."""
    json.dump(value, sys.stdout, indent=2, default=_plain)
    sys.stdout.write("\n")


def show_written(paths: Sequence[str], as_json: bool, **more: Any) -> None:
    """Say which files were written, each an object of a JSON list or a line; ``more`` goes before the list."""
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
    """Shows on a terminal how far work is, and nothing elsewhere. Use it as a context; ``update`` fits ``convert``.

    Args:
        title: what is done.
        amount: an amount of it as text; bytes by default.
    """

    def __init__(self, title: str, amount: Callable[[int], str] = size) -> None:
        self._title, self._amount = title, amount
        self._shown = sys.stderr.isatty()
        self._started = self._next = time.monotonic()
        self._columns = 0  # that the line on the terminal takes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._columns:
            self._write("")

    @property
    def update(self) -> Callable[[int, int, str], None] | None:
        """The callable to hand down."""
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
        """Write ``line`` over the one before; neither goes beyond the terminal's last column but one."""
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
        except (OSError, ValueError):
            columns = _COLUMNS
        line = line[: columns - 1].rstrip()
        sys.stderr.write(f"\r{line.ljust(min(self._columns, columns - 1))}\r{line}")
        sys.stderr.flush()
        self._columns = len(line)
