"""Looks up the metadata of one architecture of a GGUF file, typed, and remembers which keys were asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import SourceError

_ROPE = (
    "freq_base", "dimension_count", "scale_linear", "scaling.type", "scaling.factor", "scaling.original_context_length",
    "scaling.attn_factor", "scaling.yarn_ext_factor", "scaling.yarn_attn_factor", "scaling.yarn_beta_fast",
    "scaling.yarn_beta_slow",
)  # fmt: skip


class Keys:
    """Look up the metadata of one architecture, by keys without its name."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.prefix = architecture + "."
        self.values = {
            key.removeprefix(self.prefix): value for key, value in metadata.items() if key.startswith(self.prefix)
        }
        self.asked: set[str] = set()

    def get(self, key: str, otherwise: Any = None) -> Any:
        """Return a value as the file has it; ``otherwise`` if it is missing."""
        self.asked.add(key)
        return self.values.get(key, otherwise)

    def scalar(self, key: str, otherwise: Any = None) -> Any:
        """Return a value, or ``otherwise`` if it is missing; raises SourceError for a list."""
        value = self.get(key, otherwise)
        if isinstance(value, (list, np.ndarray)):
            raise self.wrong(key, value, "one value is needed")
        return value

    def integer(self, key: str, otherwise: int | None = None, least: int = 1) -> int:
        """Return an integer that is at least ``least``, or ``otherwise`` if the key is missing.

        Raises:
            SourceError: it is missing without a default, or it is something else, such as one value per layer.
        """
        value = self.get(key, otherwise)
        if type(value) is not int or not least <= value < 1 << 31:
            raise self.wrong(key, value, f"one {'positive' if least else 'whole'} number is needed")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        """Return a finite number, as the shortest decimal of its float32; raises SourceError for anything else."""
        value = self.get(key, otherwise)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, value, "a number is needed")
        return float(str(np.float32(value)))

    def flag(self, key: str, otherwise: bool | None = None) -> bool:
        """Return a bool; raises SourceError for anything else."""
        value = self.get(key, otherwise)
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false is needed")
        return value

    def each(self, key: str, count: int) -> list[Any]:
        """Return one value for each of ``count`` layers, from a list of as many or from one value for all.

        Raises:
            SourceError: it is missing, or a list of another length.
        """
        value = self.get(key)
        found = value.tolist() if isinstance(value, np.ndarray) else [value] * count
        if not isinstance(value, (int, np.ndarray)) or len(found) != count:
            raise self.wrong(key, value, f"one value, or {count} of them, is needed")
        return found

    def rope(self) -> dict[str, Any]:
        """Return the values of those ``rope.`` keys that ``rope.from_gguf`` knows, without that prefix."""
        found = {key: self.scalar(f"rope.{key}") for key in _ROPE if f"rope.{key}" in self.values}
        for key, value in found.items():
            if key == "scaling.type":
                if not isinstance(value, str):
                    raise self.wrong(f"rope.{key}", value, "a word is needed")
            else:
                self.number(f"rope.{key}")
        return found

    def wrong(self, key: str, value: Any, needed: str) -> SourceError:
        """Return the error for a value that is not what is ``needed``."""
        return SourceError(f"{self.prefix}{key} is {brief(value)}, {needed}")


def brief(value: Any) -> str:
    """Return a value as messages show it."""
    if value is None:
        return "missing"
    return f"a list of {len(value)}" if isinstance(value, (list, np.ndarray)) else repr(value)[:60]
