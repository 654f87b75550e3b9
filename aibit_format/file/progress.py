"""Defines the callback through which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

# Called with bytes done, total bytes, and the name of the tensor that was finished last.
Progress = Callable[[int, int, str], None]
