"""Reads ``params.json``, in which makers describe a model in their own terms."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ...container.documents import parse_json
from ...container.layout import MAX_DOCUMENT, MAX_ELEMENTS
from ...errors import FormatError, SourceError
from ..files import read_file

NAME = "params.json"
_LARGEST = 1e15  # of numbers that are no sizes; bases of rotations reach 1e9


class Params:
    """Provide typed values of an object of settings.

    Args:
        where: its path, for messages.
        said: the parsed object.
    """

    def __init__(self, where: str, said: Mapping[str, Any]) -> None:
        self.where, self.said = where, said

    @staticmethod
    def of(folder: str) -> Params:
        """Read the settings of a directory; some of Meta's have them in an object ``model``.

        Raises:
            SourceError: they are no JSON object.
        """
        where = os.path.join(folder, NAME)
        try:
            found = parse_json(NAME, read_file(where, MAX_DOCUMENT))
        except FormatError as error:
            raise SourceError(f"{where}: {error}") from error
        inner = found.get("model", found) if isinstance(found, Mapping) else found
        if not isinstance(inner, Mapping):
            raise SourceError(f"{where}: a JSON {type(inner).__name__}, not an object")
        return Params(where, inner)

    def __contains__(self, key: str) -> bool:
        return self.said.get(key) is not None

    def count(self, key: str, otherwise: int | None = None) -> int:
        """Return a number of something, 1 or more; Mistral writes some as text."""
        found = self.said.get(key)
        if found is None and otherwise is not None:
            return otherwise
        if isinstance(found, str) and found.isdecimal() and len(found) < 20:
            found = int(found)
        if type(found) is not int or not 1 <= found <= MAX_ELEMENTS:
            raise self.error(key, found, "a number from 1")
        return found

    def number(self, key: str, otherwise: float | None = None) -> float:
        """Return a number above zero, at most 1e15."""
        found = self.said.get(key)
        if found is None and otherwise is not None:
            return otherwise
        if type(found) not in (int, float) or not 0 < found <= _LARGEST:  # type: ignore[operator]
            raise self.error(key, found, "a number above 0")
        return float(found)  # type: ignore[arg-type]

    def flag(self, key: str) -> bool:
        """Return a truth value; without it, false."""
        found = self.said.get(key, False)
        if found is not None and type(found) is not bool:
            raise self.error(key, found, "true or false")
        return bool(found)

    def inner(self, key: str) -> Params:
        """Return the settings that are an object of their own."""
        found = self.said.get(key)
        if not isinstance(found, Mapping):
            raise self.error(key, found, "an object")
        return Params(f"{self.where}: {key}", found)

    def check_known(self, known: Collection[str], refused: Mapping[str, str]) -> None:
        """Raise SourceError for a key that means something else than is read here; one of null means nothing."""
        for key in self.said:
            if key in known or key not in self:
                continue
            why = refused.get(key, f"means something that is not read here; known: {', '.join(sorted(known))}")
            raise SourceError(f"{self.where}: key {key[:80]!r} {why}")

    def error(self, key: str, found: Any, expected: str) -> SourceError:
        """Make an error about a value."""
        return SourceError(f"{self.where}: {key} is {repr(found)[:80]}, expected {expected}")
