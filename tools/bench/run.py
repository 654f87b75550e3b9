"""Measure what the README claims: ``python -m tools.bench.run [ROW ...] [--model 1.1b] [--runs 3]``.

A row pairs measurements in fresh processes, A B A B. What is printed is the median, the least and the most of the
samples, and the median of the ratios taken round by round; every sample goes into the JSON. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench import models
from tools.bench.figures import Figure, table
from tools.bench.format_rows import FORMATS
from tools.bench.machine import machine
from tools.bench.pairing import Bench
from tools.bench.rows import ABOUT, ROWS


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="*", help="rows to measure; all by default")
    parser.add_argument("--list", action="store_true", help="say what rows there are")
    parser.add_argument("--model", choices=models.SHAPES, default="1.1b")
    parser.add_argument(
        "--formats", type=_pattern, default=re.compile(""), metavar="REGEX", help="those of the row formats that match"
    )
    parser.add_argument("--runs", type=int, default=3, help="fresh processes of each kind (default: 3)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench", help="where files are made")
    parser.add_argument(
        "--memory",
        type=Path,
        default=Path("/dev/shm"),  # noqa: S108
        help="a file system in memory (default: /dev/shm)",
    )
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="the JSON (default: results.json)")
    given = parser.parse_args()
    if unknown := [row for row in given.row if row not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if not any(given.formats.search(name) for name in FORMATS):
        parser.error(f"no format has a match of {given.formats.pattern}; there are {', '.join(FORMATS)}")
    if given.runs < 1:
        parser.error("--runs must be 1 or more")
    return given


def compact(found: dict[str, Any]) -> str:
    """Return JSON with a line for each figure, its samples in it."""
    lines: list[str] = []

    def keep(match: re.Match[str]) -> str:
        return lines[int(match[1])]

    def marked(value: Any, name: str = "") -> Any:
        if name == "figures":
            lines.extend(json.dumps(figure) for figure in value)
            return [f"figure {i}" for i in range(len(lines) - len(value), len(lines))]
        return {key: marked(item, key) for key, item in value.items()} if isinstance(value, dict) else value

    return re.sub(r'"figure (\d+)"', keep, json.dumps(marked(found), indent=1)) + "\n"


def write(
    given: argparse.Namespace,
    results: dict[str, list[Figure]],
    facts: dict[str, dict[str, Any]],
    busy: dict[str, float],
) -> None:
    found = {
        "machine": machine(),
        "model": given.model,
        "runs": given.runs,
        "formats": given.formats.pattern,
        "rows": {
            row: {
                "about": ABOUT[row],
                "load_average": busy[row],
                "facts": facts[row],
                "figures": [figure.as_json() for figure in figures],
            }
            for row, figures in results.items()
        },
    }
    given.out.write_text(compact(found), "utf-8")


def main() -> None:
    given = arguments()
    if given.list:
        print("\n".join(f"{row:8} {about}" for row, about in ABOUT.items()))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.model, given.runs, given.work.resolve(), given.memory.resolve(), given.formats)
    results: dict[str, list[Figure]] = {}
    facts: dict[str, dict[str, Any]] = {}
    busy: dict[str, float] = {}  # how much others had to do: a row that starts above 1 is worth another run
    for row in given.row or ROWS:
        print(f"{row}: {ABOUT[row]} ...", file=sys.stderr, flush=True)
        begin, bench.facts, busy[row] = time.perf_counter(), {}, os.getloadavg()[0]
        results[row], facts[row] = ROWS[row](bench), bench.facts
        print(f"{row}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        write(given, results, facts, busy)  # after every row: a later one may fail, or be waited for no longer
    print(table(results, facts))


if __name__ == "__main__":
    main()
