"""How results look: sizes, tables, JSON, progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np


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
    """A bar in bytes on a terminal, and nothing elsewhere. Use it as a context; ``update`` fits ``convert``."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.close()

    @property
    def update(self) -> Callable[[int, int, str], None] | None:
        """The callable to hand down."""
        return self._update if self._shown else None

    def _update(self, done: int, total: int, name: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(desc=self._title, total=total, unit="B", unit_scale=True, file=sys.stderr, leave=False)
        self._bar.set_postfix_str(name[-40:], refresh=False)
        self._bar.update(done - self._bar.n)
