"""Make the files under `fixtures/bad/`, each of which breaks one rule of the format, and an index of them.

    python tools/make_bad.py            # write those that are new; refuse to change one that is frozen
    python tools/make_bad.py --check    # exit 1 and name those that are not what would be written

`spec/rules.toml` says which files there are, what each breaks and which code a reader must report; the recipes are in
`tools/bad_files.py`. `index.json` says it for machines, and `README.md` for people. A few files claim, and have, more
bytes than anyone wants in a repository: for these the index states a *hole*, a run of zero bytes that the file here
leaves out. Put it back, by a seek for one, before you read the file.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frozen

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # for the recipes

FOLDER = ROOT / "fixtures" / "bad"


@dataclass(frozen=True)
class Bad:
    """One file: the rule that it breaks, and what a reader must say."""

    name: str
    code: str
    rule: str
    level: str
    classes: tuple[int, ...]
    what: str


def listed() -> Iterator[Bad]:
    """The files that `spec/rules.toml` lists, in its order."""
    for code in tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))["code"]:
        for rule in code.get("rule", ()):
            for name, text in rule.get("bad", {}).items():
                classes, what = text.split(": ", 1)
                yield Bad(name, code["code"], rule["id"], code["level"], tuple(map(int, classes.split(", "))), what)


def files() -> dict[str, bytes]:
    """Every file this makes, by name."""
    from bad_files import RECIPES  # takes a moment to import: good files are made
    from beyond import Hollow

    result, index = {}, []
    for bad in listed():
        made = RECIPES[bad.name]()
        entry: dict[str, Any] = {
            "file": f"{bad.name}.aibit", "code": bad.code, "rule": bad.rule, "level": bad.level,
            "classes": bad.classes, "what": bad.what, "size": made.size if isinstance(made, Hollow) else len(made),
        }  # fmt: skip
        if isinstance(made, Hollow):
            entry["hole"] = {"offset": made.offset, "length": made.length}
        result[entry["file"]] = made.data if isinstance(made, Hollow) else made
        index.append(entry)
    result["index.json"] = ("[\n" + ",\n".join(map(json.dumps, index)) + "\n]\n").encode()
    return result


def stale() -> list[str]:
    """Names of files that are missing, differ from what would be written, or should not be there."""
    return frozen.stale(FOLDER, files())


def main() -> int:
    return frozen.main(__doc__, FOLDER, files)


if __name__ == "__main__":
    sys.exit(main())
