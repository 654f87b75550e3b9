"""Defines every error this package raises, and the numbers an error carries.

A message reads
``model.aibit: tensor 'a.weight' plane 'absmax' at 81920: plane length, expected 262144, found 262140 [AIB-E405]``:
the file, the place in it, what is wrong, both numbers, and a code that ``spec/rules.toml`` explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """Hold one broken rule: its code, what is wrong, where, and the expected and found values."""

    code: str
    what: str
    tensor: str | None = None
    plane: str | None = None
    offset: int | None = None
    expected: Any = None
    found: Any = None

    def __str__(self) -> str:
        place = []
        if self.tensor is not None:
            place.append(f"tensor {self.tensor!r}")
        if self.plane is not None:
            place.append(f"plane {self.plane!r}")
        if self.offset is not None:
            place.append(f"at {self.offset}")
        parts = [self.what]
        if self.expected is not None:
            parts.append(f"expected {_brief(self.expected)}")
        if self.found is not None:
            parts.append(f"found {_brief(self.found)}")
        head = f"{' '.join(place)}: " if place else ""
        return f"{head}{', '.join(parts)} [{self.code}]"


def _brief(value: Any) -> str:
    text = str(value) if isinstance(value, (str, int)) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


class AibitError(Exception):
    """The base class that every error this package raises on purpose derives from; ``code`` names the rule or kind."""

    code = "AIB-E000"


class FormatError(AibitError):
    """Raised when bytes are not a valid ``.aibit`` file. Carries every problem found, in the order found."""

    def __init__(self, problems: Problem | list[Problem], path: str | None = None) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.path = path
        first = self.problems[0]
        self.code = first.code
        self.tensor, self.plane, self.offset = first.tensor, first.plane, first.offset
        self.expected, self.found = first.expected, first.found
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{path}: {first}{more}" if path else f"{first}{more}")

    def at(self, path: str) -> FormatError:
        """Return the same error with the file's name in its message."""
        return FormatError(list(self.problems), path)


class SchemeError(AibitError):
    """Raised when a scheme cannot hold a tensor because of its shape, dtype, parameters or values."""

    code = "AIB-E501"


class SourceError(AibitError):
    """Raised when a source cannot be read: a file, a tensor or a key is missing, damaged or refused."""

    code = "AIB-E901"


class RecipeError(AibitError):
    """Raised when the rules that assign schemes to tensors cannot be followed."""

    code = "AIB-E902"


class WriteError(AibitError):
    """Raised when the output cannot be written: it exists, its planes do not fit the plan, the disk is full."""

    code = "AIB-E903"


class LoadError(AibitError):
    """Raised when a file is valid, but no model or tokenizer can be built from it here."""

    code = "AIB-E904"


class MissingPackageError(AibitError):
    """Raised when an optional package is needed and is not installed."""

    code = "AIB-E905"


class IncompatibleLibraryError(AibitError):
    """Raised when a library lacks an internal name that is used here. Carries library, version and attribute."""

    code = "AIB-E905"  # the package is there, and not in a version that is of use

    def __init__(self, library: str, version: str, attribute: str, reason: str, checked: Sequence[str]) -> None:
        self.library, self.version, self.attribute, self.checked = library, version, attribute, tuple(checked)
        super().__init__(
            f"{library} {version}: {attribute} is not as expected ({reason}); "
            f"checked with {', '.join(checked)}: install one of these versions of {library}"
        )


class SigningError(AibitError):
    """Raised when a key cannot be used: it is missing, of the wrong kind, or its password is wrong."""

    code = "AIB-E906"


class GraphError(AibitError):
    """Raised when a model cannot be recorded as a graph, or a stored graph is not one. Carries expected and found."""

    code = "AIB-E907"

    def __init__(self, what: str, *, expected: Any = None, found: Any = None) -> None:
        self.what, self.expected, self.found = what, expected, found
        super().__init__(str(Problem(self.code, what, expected=expected, found=found)))

    def at(self, place: str) -> GraphError:
        """Return the same error with the place in its message."""
        return GraphError(f"{place}: {self.what}", expected=self.expected, found=self.found)


def told_by(error: BaseException, most: int = 300) -> str:
    """Return what another library's error says, in one line of at most so many characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[:most] + " ..."
