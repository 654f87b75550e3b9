"""Fixtures that are never made anew: `fixtures/FROZEN.sha256` has the digest of each, in the format of `sha256sum`.

A fixture of version 1.0 is a promise: whoever tested a reader against it must find the same bytes for ever. The tools
that make fixtures write new ones, add them to the list, and refuse to change one that is in it.

    cd fixtures && sha256sum --check FROZEN.sha256
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LIST = FIXTURES / "FROZEN.sha256"
_GROWS = ("README.md", "index.json")  # lists of files, which get longer


class FrozenError(Exception):
    """A fixture that is frozen would change."""


def digests() -> dict[str, str]:
    """Name, relative to `fixtures/`, and SHA-256 of every frozen file."""
    lines = LIST.read_text("ascii").splitlines() if LIST.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def there() -> dict[str, str]:
    """The same of every file that ought to be frozen."""
    files = [path for folder in ("container", "bad") for path in sorted((FIXTURES / folder).iterdir())]
    return {
        str(path.relative_to(FIXTURES)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in _GROWS
    }


def write(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Put these files into a folder of fixtures, freeze those that are new, and return their names.

    Raises:
        FrozenError: one is frozen and has other contents; then nothing is written.
    """
    frozen, base = digests(), folder.relative_to(FIXTURES)
    wanted = {str(base / name): hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if changed := sorted(name for name in wanted if frozen.get(name, wanted[name]) != wanted[name]):
        raise FrozenError(f"frozen, and would change: {', '.join(changed)}; give what is new another name")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    new = sorted(name for name in wanted.keys() - frozen.keys() if Path(name).name not in _GROWS)
    listed = frozen | {name: wanted[name] for name in new}
    LIST.write_text("".join(f"{listed[name]}  {name}\n" for name in sorted(listed)), "ascii")
    return new


def stale(folder: Path, wanted: Mapping[str, bytes]) -> list[str]:
    """Names of files of a folder that are missing, differ from those wanted, or should not be there."""
    found = {path.name: path.read_bytes() for path in folder.glob("*") if path.name != "README.md"}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(about: str | None, folder: Path, files: Callable[[], Mapping[str, bytes]]) -> int:
    """The command of a tool that makes a folder of fixtures: write what is new, or compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is on disk; write nothing")
    if parser.parse_args().check:
        names, shown = stale(folder, files()), folder.relative_to(FIXTURES.parent)
        print("\n".join(f"stale: {shown}/{name}" for name in names) or f"{shown} is up to date")
        return 1 if names else 0
    print("\n".join(f"new: {name}" for name in write(folder, files())) or "nothing is new")
    return 0
