"""Loading onto a GPU and computing there: ``python -m tools.bench.gpu [SECTION ...]``, in ten minutes at most.

What is measured is compared with what the same run measures of the link and of the disk. Correctness comes first. The
JSON is written after every section, so that what was found stays if the run is ended; the table is printed last.
``--device cpu`` goes the same way with small files and no link, to see that the script works. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from aibit_format.torch.load import arena
from tools.bench import models
from tools.bench.figures import number
from tools.bench.gpu_decode import compiled, decode, products
from tools.bench.gpu_load import correct, disk, link, load, warm
from tools.bench.gpu_run import NoTimeError, Run

SECTIONS: dict[str, Callable[[Run], None]] = {
    "correct": correct, "link": link, "warm": warm, "load": load, "decode": decode, "products": products,
    "cold": disk, "compiled": compiled,
}  # fmt: skip


def sections(run: Run, names: list[str]) -> Iterator[str]:
    """Run each section, whatever the others come to; yields the name of each that is over."""
    for run.section in names:
        start = time.monotonic()
        try:
            run.need(5)
            SECTIONS[run.section](run)
        except NoTimeError as over:
            run.found["left_out"][run.section] = f"no time: {over}"
        except Exception as error:  # is part of the result
            run.found["failed"][run.section] = run.reason(error)
        run.found["seconds"][run.section] = round(time.monotonic() - start, 1)
        gc.collect()
        if run.on_gpu:
            with contextlib.suppress(RuntimeError):  # after an error on the device, there is nothing to give back
                torch.cuda.empty_cache()
        run.save()
        yield run.section


def table(found: dict[str, Any]) -> str:
    """Everything that was found, as a Markdown table and lines below it."""
    lines = ["| section | what | value | unit | wanted | met |", "|---|---|--:|---|---|---|"]
    for row in found["rows"]:
        met = {True: "yes", False: "NO", None: ""}[row.get("met")]
        cells = [row["section"], row["what"], number(row["value"]), row["unit"], row.get("wanted", ""), met]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"- {title}: {what}: {why}" for title, key in (("FAILED", "failed"), ("left out", "left_out"))
              for what, why in found[key].items()]  # fmt: skip
    return "\n".join([*lines, f"- seconds: {found['seconds']}"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=models.SHAPES, help="default: 1.1b; on a CPU tiny")
    parser.add_argument("--gigabytes", type=float, help="of the file for rates (default: 8; on a CPU 0.008)")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all sections (default: 540)")
    work = Path(tempfile.gettempdir()) / "bench-gpu"
    parser.add_argument("--work", type=Path, default=work, help="where files are made")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON (default: gpu.json)")
    given = parser.parse_args()
    if unknown := [name for name in given.section if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"this torch ({torch.__version__}) sees no CUDA device; --device cpu tries the script itself")
    return given


def main() -> int:
    given = arguments()
    faulthandler.dump_traceback_later(given.budget + 50, exit=True)  # a device that hangs must not take the JSON along
    given.work.mkdir(parents=True, exist_ok=True)
    if given.device == "cpu":
        arena.LINKS["cpu"] = arena.Memory  # as a GPU's link, without the bus
    run = Run(given)
    for name in sections(run, given.section or list(SECTIONS)):
        print(f"{name}: {run.found['seconds'][name]} s", file=sys.stderr, flush=True)
    print(table(run.found))
    return 1 if run.found["failed"] or not all(row.get("met", True) for row in run.found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
