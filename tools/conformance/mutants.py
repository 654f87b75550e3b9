"""Seed small faults into the readers, one at a time, and see that the fixtures tell wrong readers from the right one.

    python -m tools.conformance.mutants                        # the reader in Python: all faults, then a summary
    python -m tools.conformance.mutants --reader c             # the one in C; needs a C compiler
    python -m tools.conformance.mutants --only leaf-of-512-kib hash-of-240

Each fault is a row of `mutants_python.py` or `mutants_c.py`: a text that must occur once in a source file, and what
stands there instead. The reader made of it is run over `fixtures/container/` and `fixtures/bad/` until it says
something else of a file than the right reader, which the twins and the index agree with: then the fault is *caught*.
A fault that no file can show is *equivalent*, and its row says why.

Exits with 0 if 97 % of the faults that are not equivalent are caught, with 1 if fewer are, and with 2 if a row does not
fit the source or the reader is wrong without any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import ROOT
from tools.conformance import corpus, mutants_c, mutants_python

SOURCES = ROOT / "tools" / "conformance"
ENOUGH = 0.97  # of the faults that are not equivalent
VALID = ""  # the place of a code
SECONDS = 60  # for one file; a reader that needs longer is caught
Says = Callable[[Path], str]  # what a reader says of a file: a code, or all that it reads


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` is replaced by ``new`` in one source file of a reader."""

    name: str
    file: str
    old: str
    new: str
    what: str
    equivalent: str = ""  # why no file can show it


Result = tuple[Mutant, tuple[Path, str] | None]  # a fault, and the file that catches it with what is said of it


class StaleError(Exception):
    """Say that a row of a table does not fit the source or is no code, or that a reader is wrong without any fault."""


def table(reader: str) -> dict[str, Mutant]:
    """Return the faults of a reader, `python` or `c`, by name."""
    rows = {"python": mutants_python.MUTANTS, "c": mutants_c.MUTANTS}[reader]
    return {name: Mutant(name, *row) for name, row in rows.items()}


def patched(mutant: Mutant, source: str) -> str:
    """Return the source with the fault in it.

    Raises:
        StaleError: the text to be replaced is not there, or is there more than once.
    """
    if (found := source.count(mutant.old)) != 1 or mutant.old == mutant.new:
        raise StaleError(f"{mutant.name}: {mutant.old!r} occurs {found} times in {mutant.file}, and must once")
    return source.replace(mutant.old, mutant.new)


def copied(reader: str, folder: Path, mutant: Mutant | None) -> Path:
    """Copy the source of a reader into a new folder, with the fault in it, and return the folder."""
    shutil.copytree(SOURCES / reader, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant:
        path = folder / mutant.file
        path.write_text(patched(mutant, path.read_text("utf-8")), "utf-8")
    return folder


# The corpus


def fixtures(folder: Path) -> dict[Path, str | None]:
    """Return the path of every fixture and its code, None for a good one; the smallest files come first.

    The code of those that are valid, and whose values alone are refused, is ``VALID``: they have no twins.

    Files that are stored without a run of zeros are put together in ``folder``.
    """
    found: dict[Path, str | None] = {path: None for path in corpus.GOOD if path.parent == corpus.FIXTURES / "container"}
    found.update((case.path, VALID if case.level == "decode" else case.code) for case in corpus.bad(folder))
    return dict(sorted(found.items(), key=lambda item: item[0].stat().st_size))


def caught_by(says: Says, wanted: Mapping[Path, str]) -> tuple[Path, str] | None:
    """Return the first file of which a reader does not say what it should, and what it says instead."""
    for path, right in wanted.items():
        if (found := says(path)) != right:
            return path, found
    return None


def check_reader(wanted: Mapping[Path, str], files: Mapping[Path, str | None], unchecked: tuple[str, ...] = ()) -> None:
    """Check what the reader says without any fault: every bad file gets its code, and no good one gets any.

    Raises:
        StaleError: it is wrong.
    """
    for path, code in files.items():
        right = code if code not in (VALID, *unchecked) else None
        if (wanted[path] if wanted[path].startswith("AIB-") else None) != right:
            raise StaleError(f"without any fault the reader says {wanted[path][:60]!r} of {path.name}, not {right}")


# The reader in Python


@contextlib.contextmanager
def python_reader(folder: Path, mutant: Mutant | None) -> Iterator[Says]:
    """Give what the reader with this fault says; its source is a package of its own that goes when it is done."""
    name = f"mutant_{mutant.name if mutant else 'none'}".replace("-", "_")
    path = copied("python", folder / name, mutant)
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])
    if spec is None or spec.loader is None:
        raise StaleError(f"{path} is no package")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
        try:
            reader = importlib.import_module(f"{name}.reader")
        except (SyntaxError, ImportError, NameError) as error:
            raise StaleError(f"{name} is not Python: {error}") from error
        yield lambda file: _in_time(lambda: _python_says(reader, file))
    finally:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]
        shutil.rmtree(path)


def _python_says(reader: Any, path: Path) -> str:
    try:
        file = reader.File(str(path))
        reader.verify(file)
        return json.dumps(reader.describe(file))
    except reader.RuleError as error:
        return error.code
    except NameError as error:
        raise StaleError(f"{reader.__name__}: {error}") from error
    except Exception as error:  # a fault may be anything
        return type(error).__name__


def _in_time(call: Callable[[], str]) -> str:
    """What the call returns, or that it takes too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        return call()
    except TimeoutError:
        return "takes too long"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def python_results(mutants: list[Mutant], files: Mapping[Path, str | None], folder: Path) -> Iterator[Result]:
    """Yield each fault with the file that catches it, or None; a file that has caught one is tried first on the next.

    Raises:
        StaleError: a row does not fit the source, or the reader is wrong without any fault.
    """
    with python_reader(folder, None) as says:
        wanted = {path: says(path) for path in files}
    check_reader(wanted, files)
    for path in (path for path, code in files.items() if code is None):
        found, twin = json.loads(wanted[path]), json.loads(path.with_suffix(".json").read_text("utf-8"))
        if any(json.dumps(found[key]) != json.dumps(twin[key]) for key in found):
            raise StaleError(f"without any fault the reader does not say of {path.name} what its twin says")
    for mutant in mutants:
        with python_reader(folder, mutant) as says:
            caught = caught_by(says, wanted)
        if caught and caught[0].stat().st_size < 1 << 16:
            wanted = {caught[0]: wanted[caught[0]]} | wanted
        yield mutant, caught


# The reader in C

NOT_IN_C = ("AIB-E502", "AIB-E503", "AIB-E705", "AIB-E706", "AIB-E707")  # the head of aibit.h says so


@contextlib.contextmanager
def c_reader(folder: Path, mutant: Mutant | None, files: Mapping[Path, str | None]) -> Iterator[Says]:
    """Give what the program with this fault says; all files are verified and listed at once, and then one by one."""
    path = copied("c", folder / "c", mutant)
    compiler = [os.environ.get("CC", "cc"), "-std=c11", "-O1", "-w"]

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([path / "list", *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS)

    def says(file: Path) -> str:
        try:
            return codes.get(str(file)) or (run("list", file).stdout if not files[file] else "accepted")
        except (subprocess.SubprocessError, UnicodeDecodeError) as error:
            return type(error).__name__

    def codes_of_all() -> dict[str, str]:
        try:
            text = "".join(run(verb, *files).stderr for verb in ("verify", "list"))
        except (subprocess.SubprocessError, UnicodeDecodeError) as error:
            return dict.fromkeys(map(str, files), type(error).__name__)
        return dict(re.findall(r"^(.+?): (AIB-E\d+)", text, re.MULTILINE))

    try:
        subprocess.run([*compiler, "-o", path / "list", path / "aibit_list.c"], check=True, capture_output=True)
        codes = codes_of_all()
        yield says
    except subprocess.CalledProcessError as error:
        raise StaleError(f"{mutant.name if mutant else 'the reader'} does not compile: {error.stderr!r}") from error
    finally:
        shutil.rmtree(path)


def c_results(mutants: list[Mutant], files: Mapping[Path, str | None], folder: Path) -> Iterator[Result]:
    """Yield each fault with the file that catches it, or None; bad files come first, as their codes are known at once.

    Raises:
        StaleError: a row does not fit the source, or the reader is wrong without any fault.
    """
    files = dict(sorted(files.items(), key=lambda item: item[1] is None))
    with c_reader(folder, None, files) as says:
        wanted = {path: says(path) for path in files}
    check_reader(wanted, files, NOT_IN_C)
    for mutant in mutants:
        with c_reader(folder, mutant, files) as says:
            caught = caught_by(says, wanted)
        yield mutant, caught


RESULTS = {"python": python_results, "c": c_results}


def results(reader: str, names: list[str] | None = None) -> Iterator[Result]:
    """Yield the faults of a reader, or those of these names, and what catches each: a file, and what is said of it.

    Raises:
        KeyError: there is no fault of such a name.
        StaleError: a row does not fit the source, or the reader is wrong without any fault.
    """
    rows = table(reader)
    chosen = [rows[name] for name in names] if names else list(rows.values())
    with tempfile.TemporaryDirectory() as folder:
        yield from RESULTS[reader](chosen, fixtures(Path(folder)), Path(folder))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=list(RESULTS), default="python", help="which reader gets the faults")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="try these faults alone")
    chosen = parser.parse_args(arguments)
    count = {"caught": 0, "not caught": 0, "equivalent": 0}
    try:
        for mutant, caught in results(chosen.reader, chosen.only):
            verdict = "caught" if caught else "equivalent" if mutant.equivalent else "not caught"
            count[verdict] += 1
            by = f"{caught[0].stem}: {caught[1][:20]}" if caught else mutant.equivalent or mutant.what
            print(f"{verdict:<10}  {mutant.name}: {by}", flush=True)
            if caught and mutant.equivalent:
                raise StaleError(f"{mutant.name} is said to be equivalent, and {caught[0].name} shows it")
    except (StaleError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    seeded = count["caught"] + count["not caught"]
    share = count["caught"] / max(seeded, 1)
    print(f"{count['caught']} of {seeded} faults caught ({share:.1%}), and {count['equivalent']} equivalent ones")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
