"""Defines how long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with bytes done, bytes in all, and the name of the tensor that was finished last.
Progress = Callable[[int, int, str], None]
