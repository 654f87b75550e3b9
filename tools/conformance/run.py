"""Judge a reader over the whole corpus, and print a summary in Markdown.

    python -m tools.conformance.run [--name NAME] [--lines] [--verdicts] [--jobs N] -- COMMAND [ARG ...]

COMMAND is run with the path of one file after its own arguments, and verifies that file in full. It accepts the file
by exit status 0 and all that the file says, as JSON in the form of the twins, on standard output. It refuses it by any
other exit status and a code: the first AIB-Ennn that it prints, on standard output or, if there is none, on standard
error. Anything else is no verdict: a signal, more than --timeout seconds, a status without JSON or a code.
spec/IMPLEMENTING.md says more.

    --lines      run COMMAND once with the paths of all files: it prints one line for each, JSON or a code
    --verdicts   judge only which files are refused and with which code, not what is printed of good files

The exit status is 0 if every verdict is right, and 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.conformance import corpus

CODE = re.compile(r"AIB-E\d{3}")


@dataclass(frozen=True)
class Answer:
    """Hold what a reader said of a file: a code, what the file says, or neither and why there is no verdict."""

    code: str | None = None
    content: Any = None
    failure: str | None = None


@dataclass(frozen=True)
class Judgement:
    """Hold how an answer compares with the corpus; ``outcome`` is a key of OUTCOMES, ``reason`` what was wrong."""

    case: corpus.Case
    outcome: str
    reason: str = ""


# What an answer can be, with the words of the summary; the first of each group is right.
OUTCOMES = {
    "read": "good files read",
    "differs": "good files read otherwise than the twin says",
    "refused": "good files refused",
    "right": "bad files refused with the right code",
    "other": "bad files refused with another code",
    "accepted": "bad files accepted",
    "none": "files without a verdict",
}
RIGHT = ("read", "right")


def judge(case: corpus.Case, answer: Answer, verdicts: bool = False) -> Judgement:
    """Compare an answer with what the corpus says; with ``verdicts``, not what the file says."""
    if answer.failure:
        return Judgement(case, "none", answer.failure)
    if case.code is not None:
        if answer.code is None:
            if case.level == "decode" and (verdicts or corpus.says_unknown(answer.content, case.code)):
                return Judgement(case, "right", "")
            return Judgement(case, "accepted", f"accepted, not refused with {case.code}")
        same = answer.code == case.code
        return Judgement(case, "right" if same else "other", "" if same else f"{answer.code}, not {case.code}")
    if answer.code is not None:
        return Judgement(case, "refused", f"refused with {answer.code}")
    reason = None if verdicts else corpus.difference(answer.content, case.twin)
    return Judgement(case, "differs" if reason else "read", reason or "")


def answer_of(text: str, error: str, status: int, verdicts: bool = False) -> Answer:
    """Return what a process answered that ended by itself."""
    if status == 0:
        try:
            return Answer() if verdicts else Answer(content=corpus.loads(text))
        except ValueError as problem:
            return Answer(failure=f"exit status 0, and standard output is not JSON: {problem}")
    if status > 0 and (code := CODE.search(text) or CODE.search(error)):
        return Answer(code=code[0])
    said = (error.strip() or text.strip() or "nothing").splitlines()[-1][:120]
    return Answer(failure=f"signal {-status}" if status < 0 else f"exit status {status} without a code: {said}")


def line_answer(line: str, verdicts: bool = False) -> Answer:
    """Return what one line of a reader says that was given all files."""
    code = CODE.match(line)
    return Answer(code=code[0]) if code else answer_of(line, "", 0, verdicts)


def one_by_one(command: Sequence[str], timeout: float, verdicts: bool) -> Callable[[Path], Answer]:
    """Return a function that runs the command on one file."""

    def ask(path: Path) -> Answer:
        try:
            done = subprocess.run([*command, path], capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return Answer(failure=f"no answer within {timeout:g} s")
        out, error = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        return answer_of(out, error, done.returncode, verdicts)

    return ask


def all_at_once(command: Sequence[str], paths: Sequence[Path], verdicts: bool) -> list[Answer]:
    """Run the command once on all files, and return the answer that each line is."""
    done = subprocess.run([*command, *paths], capture_output=True, stdin=subprocess.DEVNULL)
    lines = done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if len(lines) != len(paths):
        said = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise SystemExit(f"{len(lines)} lines for {len(paths)} files, exit status {done.returncode}\n{said}")
    return [line_answer(line, verdicts) for line in lines]


def run(
    command: Sequence[str], *, lines: bool = False, verdicts: bool = False, timeout: float = 60, jobs: int | None = None
) -> list[Judgement]:
    """Judge a reader over all files of the corpus."""
    with tempfile.TemporaryDirectory(prefix="aibit-corpus-") as folder:
        cases = [*corpus.good(), *corpus.bad(Path(folder))]
        paths = [case.path for case in cases]
        if lines:
            answers = all_at_once(command, paths, verdicts)
        else:
            with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
                answers = [*pool.map(one_by_one(command, timeout, verdicts), paths)]
    return [judge(case, answer, verdicts) for case, answer in zip(cases, answers, strict=True)]


def summary(name: str, judgements: Sequence[Judgement], verdicts: bool = False) -> str:
    """Return a page about a reader, in Markdown."""
    counts = Counter(judgement.outcome for judgement in judgements)
    total = Counter(judgement.case.code is None for judgement in judgements)
    misses = [judgement for judgement in judgements if judgement.outcome not in RIGHT]
    of = {"read": f" of {total[True]}", "right": f" of {total[False]}"}
    words = OUTCOMES | ({"read": "good files accepted (what it says of them was not compared)"} if verdicts else {})
    return "\n".join([
        f"# {name} and `.aibit`", "", f"Corpus: {corpus.version()}.", "",
        "| what | files |", "|---|---|",
        *(f"| {words[outcome]} | {counts[outcome]}{of.get(outcome, '')} |" for outcome in OUTCOMES), "",
        *([f"{len(misses)} misses:", ""] if misses else ["No misses."]),
        *(f"- `{miss.case.name}`: {miss.reason}" for miss in misses),
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the reader that the command line names, and print the page about it."""
    parser = argparse.ArgumentParser(
        prog="tools.conformance.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the reader and its arguments, after --")
    parser.add_argument("--name", help="what the page calls the reader; by default the command")
    parser.add_argument("--lines", action="store_true", help="run it once with all files")
    parser.add_argument("--verdicts", action="store_true", help="do not compare what it says of good files")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a file (default: 60)")
    parser.add_argument("--jobs", type=int, help="files at a time (default: as many as there are processors)")
    parser.add_argument("--json", action="store_true", help="print the judgement of every file as JSON instead")
    options = parser.parse_args(arguments)
    if not shutil.which(options.command[0]):
        parser.error(f"there is no program {options.command[0]}")
    judgements = run(
        options.command, lines=options.lines, verdicts=options.verdicts, timeout=options.timeout, jobs=options.jobs
    )
    if options.json:
        rows = [{"file": j.case.name, "outcome": j.outcome, "reason": j.reason} for j in judgements]
        print(json.dumps(rows, indent=1))
    else:
        print(summary(options.name or shlex.join(options.command), judgements, options.verdicts))
    return 0 if all(judgement.outcome in RIGHT for judgement in judgements) else 1


if __name__ == "__main__":
    sys.exit(main())
