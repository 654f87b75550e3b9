"""List the files that every reader is judged on, and compare what it says of them.

Good files lie beside twins, which give every field and every value; bad ones are listed in fixtures/bad/index.json with
the code that they must get. fixtures/README.md describes both. This module needs Python's standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import ROOT

FIXTURES = ROOT / "fixtures"
GOOD = sorted(path for path in FIXTURES.rglob("*.aibit") if path.with_suffix(".json").exists())
INDEX = json.loads((FIXTURES / "bad" / "index.json").read_text("utf-8"))
NOT_FROM_THE_FILE = ("file", "about")  # what a twin says beside what its file does


@dataclass(frozen=True)
class Case:
    """A file with what a reader must say of it: all that its twin says, or the code of the rule that it breaks."""

    name: str  # of the file, relative to fixtures/
    path: Path
    code: str | None = None
    level: str = "full"

    @property
    def twin(self) -> dict[str, Any]:
        return twin(self.path)


def twin(path: Path) -> dict[str, Any]:
    """Return what a good file says."""
    content = loads(path.with_suffix(".json").read_text("utf-8"))
    return {key: value for key, value in content.items() if key not in NOT_FROM_THE_FILE}


def good() -> Iterator[Case]:
    """Yield every good file."""
    for path in GOOD:
        yield Case(path.relative_to(FIXTURES).as_posix(), path)


def bad(folder: Path) -> Iterator[Case]:
    """Yield every bad file. One that is stored without a hole is put together in ``folder``, as a sparse file."""
    for entry in INDEX:
        path = FIXTURES / "bad" / entry["file"]
        if hole := entry.get("hole"):
            path = _with_hole(path.read_bytes(), folder / entry["file"], **hole)
        yield Case(f"bad/{entry['file']}", path, entry["code"], entry["level"])


def _with_hole(data: bytes, path: Path, offset: int, length: int) -> Path:
    with path.open("wb") as file:
        file.write(data[:offset])
        file.truncate(offset + length)
        file.seek(offset + length)
        file.write(data[offset:])
    return path


def says_unknown(content: Any, code: str) -> bool:
    """Tell whether a reader read a file, and says of a tensor that its values are not known to it, and why.

    So it is with files of level *decode*, which are valid: {"name": ..., "unknown": "AIB-E406"} without "values".
    """
    tensors = content.get("tensors") if isinstance(content, dict) else None
    return isinstance(tensors, list) and any(isinstance(t, dict) and t.get("unknown") == code for t in tensors)


def version() -> str:
    """Return what tells this corpus from another: how many files it has, and a digest of their names and bytes."""
    digest = hashlib.sha256()
    paths = [*GOOD, *(path.with_suffix(".json") for path in GOOD), *sorted((FIXTURES / "bad").glob("*.aibit"))]
    for path in [*paths, FIXTURES / "bad" / "index.json"]:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(FIXTURES).as_posix()}\n".encode())
    return f"{len(GOOD)} good and {len(INDEX)} bad files, SHA-256 {digest.hexdigest()[:16]}"


def loads(text: str) -> Any:
    """Read JSON in which -0 is minus zero, as it is for a reader whose language has no integers."""
    return json.loads(text, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))


NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # in quotes, where JSON has no such numbers


def difference(found: Any, wanted: Any, place: str = "") -> str | None:
    """Return the first place where two values differ and how, or None if they are the same.

    Objects may have their members in any order. Numbers are the same if they are equal, however they are written (1 or
    1.0), but 0 is not -0.0 and true is not 1. NaN is NaN, and may be in quotes, like infinities.
    """
    if isinstance(wanted, dict) and isinstance(found, dict):
        if missing := [key for key in wanted if key not in found]:
            return f"{place or 'the file'}: {missing[0]!r} is missing"
        if more := [key for key in found if key not in wanted]:
            return f"{place or 'the file'}: {more[0]!r} is not in the twin"
        pairs = ((f"{place}.{key}".lstrip("."), found[key], wanted[key]) for key in wanted)
    elif isinstance(wanted, list) and isinstance(found, list):
        if len(found) != len(wanted):
            return f"{place}: {len(found)} items, not {len(wanted)}"
        pairs = ((f"{place}[{i}]", *pair) for i, pair in enumerate(zip(found, wanted, strict=True)))
    elif _is_same(found, wanted):
        return None
    else:
        return f"{place}: {_short(found)}, not {_short(wanted)}"
    return next((text for where, a, b in pairs if (text := difference(a, b, where))), None)


def _is_same(found: Any, wanted: Any) -> bool:
    a, b = _number(found), _number(wanted)
    if a is None or b is None:
        return type(found) is type(wanted) and found == wanted
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if isinstance(b, float):  # any digits will do that stand for this number, also without a point
        a = float(a)
    return a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return NUMBERS.get(value)
    return value if type(value) in (int, float) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
