"""Lets every call by which a verb changes files fail, one at a time: ``python -m tools.fuzz.disk [VERB ...]``.

Each verb that writes runs in a process of its own, once for each such call and each way to fail: with an input/output
error, without space, short, and ended by SIGKILL, SIGTERM or SIGINT. What is in its folder afterwards must be what was
there, or what an unharmed run leaves; nothing else may stay but what a killed process could not remove, and that must
be gone after the next run. The table that is printed is in ``FUZZING.md``. It takes a C compiler and Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools import ROOT

COUNT = -1  # no call fails
HOW = ("error", "no space", "short", "killed", "terminated", "interrupted")  # in the order of failing_calls.c
_STATUS = {"killed": -signal.SIGKILL, "terminated": 128 + signal.SIGTERM, "interrupted": 130}
MODEL = ROOT / "fixtures" / "models" / "tiny-llama"
TEXT = ROOT / "fixtures" / "models" / "heldout.txt"

State = dict[str, str]  # a path in the folder -> a digest of the file


@dataclass(frozen=True)
class Verb:
    """Describe a run of a verb: what must be there before, and the arguments; ``{}`` is the folder."""

    arguments: str
    before: tuple[str, ...] = ()  # arguments of runs that make what is there
    mixed: bool = False  # several files that are not one model: each is old or new by itself
    resumes: str = ""  # what an ended run leaves on purpose: the next one goes on from it, and takes it away


_FILE, _OLDER = f"convert {MODEL} -o {{}}/in.aibit", f"convert {MODEL} -o {{}}/out.aibit --scheme bf16"
_KEY, _SHARDS = "sign --new-key {}/key", "split {}/in.aibit -o {}/in-s.aibit --max-shard-size 200kB"
_TENSORS = " ".join(f"--tensor model.layers.0.self_attn.{name}_proj.weight" for name in "qk")
VERBS = {
    "convert": Verb(f"convert {MODEL} -o {{}}/out.aibit"),
    "convert over a file": Verb(f"convert {MODEL} -o {{}}/out.aibit --force", (_OLDER,)),
    "convert to shards": Verb(f"convert {MODEL} -o {{}}/out.aibit --max-shard-size 300kB"),
    "edit": Verb("edit {}/in.aibit -o {}/out.aibit --set a.b=1 --force", (_FILE, _OLDER)),
    "split": Verb("split {}/in.aibit -o {}/out.aibit --max-shard-size 200kB", (_FILE,)),
    "split over shards": Verb(
        "split {}/in.aibit -o {}/out.aibit --max-shard-size 200kB --force",
        (_FILE, _OLDER, "split {}/out.aibit -o {}/out.aibit --max-shard-size 350kB"),
    ),
    "merge": Verb("merge {}/in-s-00001-of-*.aibit -o {}/out.aibit --force", (_FILE, _OLDER, _SHARDS)),
    "sign": Verb("sign {}/in.aibit --key {}/key.pem -o {}/out.aibit --force", (_FILE, _OLDER, _KEY)),
    "sign --detached": Verb(
        "sign {}/in.aibit --key {}/key.pem --detached --force",
        (_FILE, _KEY, "sign --new-key {}/older", "sign {}/in.aibit --key {}/older.pem --detached"),
    ),
    "sign --new-key": Verb("sign --new-key {}/new", mixed=True),
    "extract": Verb(f"extract {{}}/in.aibit -o {{}}/out --force {_TENSORS}", (
        _FILE, _OLDER, f"extract {{}}/out.aibit -o {{}}/out {_TENSORS}"), mixed=True),
    "export to safetensors": Verb("export {}/in.aibit --to safetensors -o {}/out", (_FILE,)),
    "export over a directory": Verb(
        "export {}/in.aibit --to huggingface -o {}/out --force",
        (_FILE, _OLDER, "export {}/out.aibit --to huggingface -o {}/out"),
    ),
    "export to gguf": Verb("export {}/in.aibit --to gguf -o {}/out.gguf", (_FILE,), mixed=True),
    "eval --save-logits": Verb(
        f"eval {MODEL} --text {TEXT} --limit 64 --ref {MODEL} --save-logits {{}}/out.safetensors"
    ),
    "trim": Verb(f"trim {MODEL} -o {{}}/out.aibit --force --text {TEXT} --min-count 9", (_OLDER,)),
    "prune": Verb(f"prune {MODEL} -o {{}}/out.aibit --force --keep-layers 1", (_OLDER,)),
    "graph": Verb("graph {}/in.aibit -o {}/out.aibit --force", (_FILE, _OLDER)),
    "convert --measure": Verb(f"convert {MODEL} -o {{}}/out.aibit --force --measure {TEXT}"),
    "calibrate": Verb(
        f"calibrate {MODEL} --text {TEXT} --samples 2 --length 16 -o {{}}/out.safetensors --force",
        resumes="out.safetensors.partial",
    ),
    "run": Verb("run {}/in.aibit the --max-new-tokens 1", (_FILE,)),
}


@dataclass
class Table:
    """Count what was found for a verb."""

    calls: Counter[str] = field(default_factory=Counter)  # by name, of an unharmed run
    found: Counter[str] = field(default_factory=Counter)  # "old", "new", by way of failing
    wrong: list[str] = field(default_factory=list)


def state(folder: Path) -> State:
    """Return the files in a folder, hidden ones too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if path.name.startswith(".") or not any(path.iterdir()):
                found[name] = "a directory"
        else:
            text = path.read_bytes()
            # A new key is another each time: it is enough that it is whole.
            whole_key = b"-----BEGIN" in text and text.rstrip().endswith(b"-----")
            found[name] = "a key" if whole_key else hashlib.sha256(text).hexdigest()
    return found


def hidden(found: State) -> list[str]:
    """Return the files that are on their way."""
    return [name for name in found if any(part.startswith(".") for part in Path(name).parts)]


def resumed(found: State, verb: Verb) -> list[str]:
    """Return the files from which the next run goes on."""
    return [name for name in found if Path(name).parts[0] == verb.resumes]


def run(library: ctypes.CDLL | None, arguments: list[str], n: int = 0, how: int = 0) -> tuple[int, int, str, str]:
    """Run a verb in a process of its own, its n-th call failing.

    Returns the exit status, or the signal's number, negative; the calls counted; the name of the failing one; and what
    it printed on stderr.
    """
    reading, writing = os.pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - of both processes
    child = os.fork()
    if not child:
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            from aibit_format import cli

            signal.signal(signal.SIGTERM, cli._terminate)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if library is not None:
                library.fail_at(n, how)
            try:
                status = cli.main(arguments)
            except SystemExit as ended:
                status = int(ended.code or 0)
            sys.stderr.flush()
            if library is not None:
                told = f"{library.fail_calls()} {library.fail_name().decode()}"
                library.fail_at(0, 0)
                os.write(writing, told.encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        calls, _, name = pipe.read().partition(" ")
    _, ended = os.waitpid(child, 0)
    errors.seek(0)
    return os.waitstatus_to_exitcode(ended), int(calls or 0), name, errors.read().decode()


def words(arguments: str, folder: Path) -> list[str]:
    """Return a command's words, with the folder in them; patterns become the file that they match."""
    found = [word.replace("{}", str(folder)) for word in arguments.split()]
    return [glob.glob(word)[0] if "*" in word else word for word in found]


def one_of(found: State, old: State, new: State, verb: Verb) -> str | None:
    """Return which of two states a folder is in, apart from what is hidden; ``None`` if it is neither."""
    aside = {*hidden(found), *resumed(found, verb)}
    seen = {name: digest for name, digest in found.items() if name not in aside}
    if seen in (old, new):
        return "old" if seen == old else "new"
    if verb.mixed and all(digest in (old.get(name), new.get(name)) for name, digest in seen.items()):
        return "some of the new" if set(seen) >= set(old) else None
    outputs = {name: digest for name, digest in seen.items() if old.get(name) != digest}
    if all(name.startswith("out-0") for name in outputs):  # shards, of which the first says which model there is
        return _shards(seen, old, new)
    return None


def _shards(seen: State, old: State, new: State) -> str | None:
    first = next((name for name in sorted(seen) if name.startswith("out-00001-")), None)
    if first is None:
        return "old" if not any(name.startswith("out-00001-") for name in old) else None
    which = "old" if seen[first] == old.get(first) else "new" if seen[first] == new.get(first) else None
    return which and f"{which}, {'others beside it'}"


def check(library: ctypes.CDLL, verb: Verb, note: Callable[[str], None]) -> Table:
    """Try one verb."""
    table = Table()
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work) / "whole"
        whole.mkdir()
        for arguments in verb.before:
            status, *_, printed = run(None, words(arguments, whole))
            if status:
                raise SystemExit(f"{arguments}: {printed}")
        folder = Path(work) / "folder"

        def fresh() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)

        fresh()
        old = state(folder)
        status, count, _, printed = run(library, words(verb.arguments, folder), COUNT)
        new = state(folder)
        if status or hidden(new) or resumed(new, verb):
            raise SystemExit(f"unharmed, {verb.arguments} fails: {printed}; left: {[*new]}")
        elsewhere = _elsewhere()
        for n in range(1, count + 2):
            for how, name in enumerate(HOW):
                fresh()
                status, _, call, printed = run(library, words(verb.arguments, folder), n, how)
                if n <= count and name == "error":
                    table.calls[call or "?"] += 1
                found = state(folder)
                what = _judged(verb, name, status, printed, found, old, new, n > count)
                place = f"call {n} of {count} ({call}) {name}: "
                if hidden(found):  # goes with the next run that has something to write
                    for file in found.keys() - old.keys() - set(hidden(found)):
                        (folder / file).unlink()
                    run(None, words(verb.arguments, folder))
                    if left := hidden(state(folder)):
                        what = f"WRONG: left after the next run: {left}"
                if resumed(state(folder), verb):
                    status, *_, printed = run(None, words(verb.arguments, folder))
                    if status or state(folder) != new:
                        what = f"WRONG: the next run does not go on: {status}, {[*state(folder)]}, {printed[-200:]!r}"
                if left := _elsewhere() - elsewhere:
                    if name not in ("terminated", "interrupted"):
                        run(None, words(verb.arguments, folder))
                        left = _elsewhere() - elsewhere
                    if left:
                        what = f"WRONG: left elsewhere: {left}"
                if what.startswith("WRONG"):
                    table.wrong.append(place + what)
                    note(place + what)
                table.found[f"{name}: {what.partition(':')[0]}"] += 1
    return table


def _judged(
    verb: Verb, name: str, status: int, printed: str, found: State, old: State, new: State, unharmed: bool
) -> str:
    """Return what a run left, as a word; with WRONG before it if it should not have."""
    which = one_of(found, old, new, verb)
    if which is None:
        changed = sorted(key for key in found.keys() | old.keys() if found.get(key) != old.get(key))
        return f"WRONG: neither old nor new: {changed}"
    if name == "killed":
        return which
    if hidden(found) and name in _STATUS:
        return f"WRONG: left: {hidden(found)}"
    if "Traceback" in printed or "unexpected" in printed:
        return f"WRONG: printed {printed[-200:]!r}"
    allowed = {0, 1} | ({_STATUS[name]} if name in _STATUS else set())
    if status not in allowed:
        return f"WRONG: status {status}: {printed[-200:]!r}"
    if status == 0 and not which.startswith("new") and found != new and old != new:
        return f"WRONG: status 0, and what is there is {which}"
    if status == 1 and which == "new" and old != new and not unharmed:
        return "new, and said to have failed"
    return which


def _elsewhere() -> set[str]:
    """Return what is in the folders for temporary files that could be ours."""
    return {name for where in ("/dev/shm", tempfile.gettempdir()) for name in glob.glob(f"{where}/.aibit-*")}  # noqa: S108


def compiled(folder: Path) -> Path:
    """Compile the library that lets calls fail."""
    library = folder / "failing_calls.so"
    source = ROOT / "tools" / "fuzz" / "failing_calls.c"
    command = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verbs", metavar="VERB", nargs="*", help=f"one of: {', '.join(VERBS)} (default: all)")
    given = parser.parse_args()
    if unknown := set(given.verbs) - VERBS.keys():
        parser.error(f"no such verb: {', '.join(unknown)}")
    if "AIBIT_FAILING_CALLS" not in os.environ:  # the library has to be there when the process starts
        with tempfile.TemporaryDirectory() as folder:
            library = str(compiled(Path(folder)))
            environment = os.environ | {
                "AIBIT_FAILING_CALLS": library, "LD_PRELOAD": library, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            return subprocess.run([sys.executable, "-m", "tools.fuzz.disk", *given.verbs], env=environment).returncode
    library = ctypes.CDLL(os.environ["AIBIT_FAILING_CALLS"])
    library.fail_name.restype = ctypes.c_char_p
    from aibit_format.cli.silence import quiet_libraries

    quiet_libraries()
    import aibit_format.convert.convert
    import aibit_format.torch.load.build  # noqa: F401 - imported once, and not in each process

    wrong = 0
    print("| verb | calls | ways | old | new | others | wrong |\n|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in given.verbs or VERBS:
        table = check(library, VERBS[name], lambda line: print(line, file=sys.stderr, flush=True))
        counts: Counter[str] = Counter()
        for what, count in table.found.items():
            word = what.partition(": ")[2]
            counts[word if word in ("old", "new", "WRONG") else "others"] += count
        total = sum(table.calls.values())
        print(f"| {name} | {total} | {sum(counts.values())} | {counts['old']} | {counts['new']} | {counts['others']} "
              f"| {counts['WRONG']} |", flush=True)  # fmt: skip
        wrong += len(table.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
