"""Prints what was measured of quality against size, and draws it: ``python -m tools.bench.frontier_tables JSON ...``.

A line of a table is a scheme, a column an encoder and its way. ``--check`` writes nothing, and says whether a picture
is the one of its results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.frontier_picture import picture
from tools.bench.frontier_rows import AWQ, BNB, BOTH, GPTQ, IMPORTANCE, LLAMA, OURS, PLAIN

COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "no data": ((OURS, PLAIN), (BNB, PLAIN)),
    "importance": ((OURS, IMPORTANCE),),
    "GPTQ": ((OURS, GPTQ),),
    "AWQ": ((OURS, AWQ),),
    "AWQ, GPTQ": ((OURS, BOTH),),
    "llama.cpp": ((LLAMA, PLAIN),),
    "with importance": ((LLAMA, IMPORTANCE),),
}
_TITLES = {"linear": "Linear weights", "all": "all weights"}


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of Markdown for each scope."""
    for scope, title in _TITLES.items():
        rows = [row for row in results["rows"] if row["scope"] == scope]
        columns = {
            name: ways for name, ways in COLUMNS.items() if any((row["encoder"], row["how"]) in ways for row in rows)
        }
        if not rows:
            continue
        yield f"| {title} | bits | {' | '.join(columns)} |"
        yield f"|---|--:|{'--:|' * len(columns)}"
        bits: dict[str, float] = {}
        for row in rows:
            bits.setdefault(row["scheme"], row["bits"])
        for scheme in sorted(bits, key=lambda each: -bits[each]):
            cells = [cell(rows, scheme, ways) for ways in columns.values()]
            yield f"| `{scheme.removeprefix('gguf:')}` | {bits[scheme]:.2f} | {' | '.join(cells)} |"
        yield ""


def cell(rows: Sequence[Mapping[str, Any]], scheme: str, ways: Sequence[tuple[str, str]]) -> str:
    """Return the distance of a scheme, in at least two digits; empty if it was not measured."""
    found = [row["distance"] for row in rows if row["scheme"] == scheme and (row["encoder"], row["how"]) in ways]
    return number(found[0]) if found else ""


def number(value: float) -> str:
    """Return a number with three digits, without a zero before the point."""
    return f"{value:.3g}" if value >= 1 else f"{value:.{3 if value >= 0.1 else 4 if value >= 0.01 else 5}f}"[1:]


def show(paths: Sequence[Path], svg: Path | None) -> None:
    """Print the tables of results, and draw the picture of the first."""
    for place, path in enumerate(paths):
        results = json.loads(path.read_text("utf-8"))
        print("\n".join(tables(results)))
        if place == 0 and svg is not None:
            svg.write_text(picture(results), "utf-8")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of frontier")
    parser.add_argument("--svg", type=Path, help="draw the first here")
    parser.add_argument("--check", action="store_true", help="exit status 1 if that is not what would be drawn")
    arguments = parser.parse_args(given)
    if arguments.check:
        drawn = picture(json.loads(arguments.results[0].read_text("utf-8")))
        return int(drawn != arguments.svg.read_text("utf-8"))
    show(arguments.results, arguments.svg)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
