"""Tries all model types and writes ``docs/models.md``: ``python -m tools.models [--jobs 2] [--only TYPE ...]``.

It takes about ten minutes on two cores. Types are tried in processes of their own, a few in each: some libraries end a
process whose numbers they do not like. With ``--only``, what is found is printed and the page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from tools import ROOT

PAGE = ROOT / "docs" / "models.md"
WAYS = ("16 bits", "int8", "nf4")
EXPERTS = "experts"  # another way, of models that have some
_AT_ONCE, _SECONDS = 6, 300
_LIBRARIES = ("transformers", "bitsandbytes", "torch")
_ALONE = "runs; not in transformers: "


def tried(types: Sequence[str]) -> list[dict[str, Any]]:
    """Try types in one process; those that it does not get to, each in one of its own."""
    command = [sys.executable, "-m", "tools.models.check", *types]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS)
        printed, ended = done.stdout, f"the process ends with status {done.returncode}"
    except subprocess.TimeoutExpired as late:
        printed, ended = (late.stdout or b"").decode(), f"it takes more than {_SECONDS} s"
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    left = types[len(rows) :]
    if len(types) == 1 and left:
        return [{"type": types[0], "built": ended}]
    return rows + [row for each in left for row in tried([each])]


def all_tried(types: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """Try types in several processes at a time."""
    parts = [types[i : i + _AT_ONCE] for i in range(0, len(types), _AT_ONCE)]
    with ThreadPoolExecutor(jobs) as threads:
        return [row for rows in threads.map(tried, parts) for row in rows]


def right(row: dict[str, Any]) -> bool:
    """Tell whether a type gives the outputs of transformers in every way."""
    return all(row.get(way) == "equal" for way in WAYS) and row.get(EXPERTS, "equal") == "equal"


def alone(row: dict[str, Any]) -> bool:
    """Tell whether a type is right in every way that transformers can load it in, and runs in the others."""
    found = [row.get(way, "") for way in WAYS]
    if row.get(EXPERTS, "equal") != "equal":
        return False
    return not right(row) and "equal" in found and all(way == "equal" or way.startswith(_ALONE) for way in found)


def page(rows: Iterable[dict[str, Any]]) -> str:
    """Return the page."""
    rows = sorted(rows, key=lambda row: row["type"])
    equal, more = [row for row in rows if right(row)], [row for row in rows if alone(row)]
    built = [row for row in rows if "built" not in row and row not in equal and row not in more]
    libraries = ", ".join(f"{name} {version(name).split('+')[0]}" for name in _LIBRARIES)
    lines = [
        "# Models",
        "",
        "Every model type of transformers was tried with a small model of random weights: saved, converted, loaded,",
        "and run beside what `from_pretrained` makes of the same directory. A type is right if the outputs are equal",
        "bit for bit in bfloat16, in int8 (`load_in_8bit`) and in nf4 (`load_in_4bit`), with fused experts as",
        "transformers leaves them. Where a model has some, they are also quantized (`int8-absmax`) and compared,",
        "in float32, within a thousandth, with the same values in transformers' own experts.",
        "",
        f"Written by `python -m tools.models` with {libraries} on a CPU; do not edit.",
        "",
        "| | types |",
        "|---|--:|",
        f"| with a class of models | {len(rows)} |",
        f"| right | {len(equal)} |",
        f"| right where transformers runs the model, and run here where it does not | {len(more)} |",
        f"| of the right, with fused experts that stay packed | {sum(EXPERTS in row for row in equal)} |",
        f"| built, and neither | {len(built)} |",
        f"| not tried: no small model was built, or none that runs | {sum('built' in row for row in rows)} |",
        "",
        "## Right",
        "",
        "| type | class | inputs |",
        "|---|---|---|",
        *(f"| {row['type']} | `{row['class']}` | {', '.join(row['inputs'])} |" for row in equal),
        "",
        "## Right, and more than transformers runs",
        "",
        "| type | class | transformers |",
        "|---|---|---|",
        *(f"| {row['type']} | `{row['class']}` | {_ways(row, _ALONE)} |" for row in more),
        "",
        "## Neither",
        "",
        "| type | class | found |",
        "|---|---|---|",
        *(f"| {row['type']} | `{row['class']}` | {_ways(row, '')} |" for row in built),
        "",
        "## Not tried",
        "",
        "The configuration that `tools/models/tiny.py` makes is no model of these, or no input was found for it.",
        "",
        "| type | reason |",
        "|---|---|",
        *(f"| {row['type']} | {_cell(row['built'])} |" for row in rows if "built" in row),
        "",
    ]
    return "\n".join(lines)


def _ways(row: dict[str, Any], before: str) -> str:
    ways = (*WAYS, EXPERTS)
    found = {way: row[way].removeprefix(before) for way in ways if row.get(way, "equal") != "equal"}
    return "; ".join(f"{way}: {_cell(what)}" for way, what in found.items())


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--only", metavar="TYPE", nargs="+", help="try these, and print what is found")
    given = parser.parse_args()
    if given.only:
        for row in all_tried(given.only, given.jobs):
            print(json.dumps(row))
        return 0
    from tools.models.check import types

    rows = all_tried(types(), given.jobs)
    PAGE.write_text(page(rows), "utf-8")
    print(f"{sum(map(right, rows))} of {len(rows)} types are right; written to {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
