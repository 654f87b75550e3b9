"""Measures what a demanded signature costs: ``python -m tools.bench.signatures [--size 1000] [--runs 5]``.

The same tensors are signed once over the whole file, as version 1.0 did, and once over the front matter with strong
leaves. Each figure is the median of runs in processes of their own, which have imported the package and read another
file before, with the files in the page cache: seconds until the first plane may be used, and until everything is
verified, beside SHA-256 of as many bytes with as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import aibit_format as aibit
from aibit_format.file import writer
from aibit_format.schemes import make
from tools import ROOT
from tools.bench.machine import machine

_TENSORS = 16
_PROCESS = """
import sys, time
import numpy as np
import aibit_format as aibit
from aibit_format.container import checksums

what, path, key, small = sys.argv[1:]
with aibit.open(small, signed_by=key) as file:
    file.planes("t0")
begun = time.perf_counter()
if what == "sha256":
    checksums.strong_leaves(np.memmap(path, np.uint8, "r"))
else:
    with aibit.open(path, signed_by=key) as file:
        file.planes("t0")["codes"][0, 0]
        if what == "all":
            file.verify()
print(time.perf_counter() - begun)
"""


def tensors(megabytes: int) -> dict[writer.Tensor, dict[str, np.ndarray]]:
    """Make int8 tensors of so many megabytes in all."""
    rows = max(megabytes * 1_000_000 // _TENSORS // 4096, 1)
    rng, planes = np.random.default_rng(0), {}
    codes = rng.integers(-127, 128, (rows, 4096), np.int8)
    for i in range(_TENSORS):
        tensor = writer.Tensor(f"t{i}", codes.shape, "bf16", make("int8"))
        planes[tensor] = {"codes": np.roll(codes, i, 1), "row_absmax": np.ones(rows, np.float32)}
    return planes


def seconds(runs: int, *arguments: str | Path) -> float:
    """Return the median time that the process reports."""
    command = [sys.executable, "-c", _PROCESS, *map(str, arguments)]
    found = [float(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout) for _ in range(runs)]
    return statistics.median(found)


def measured(folder: Path, megabytes: int, runs: int) -> dict[str, float]:
    """Return seconds by what was done."""
    aibit.new_key(folder / "k")
    for name, size in (("big", megabytes), ("small", 1)):
        writer.write(folder / name, tensors(size))
        aibit.sign_detached(folder / name, folder / "k.pem")  # without strong leaves: over the whole file
        aibit.sign(folder / name, folder / "k.pem", folder / f"{name}-signed")
    whole, front = ((folder / f"big{end}", folder / "k.pub", folder / f"small{end}") for end in ("", "-signed"))
    return {
        "first plane, signed as a whole": seconds(runs, "first", *whole),
        "first plane, signed over the front matter": seconds(runs, "first", *front),
        "everything, signed as a whole": seconds(runs, "all", *whole),
        "everything, signed over the front matter": seconds(runs, "all", *front),
        "SHA-256 of the file, all cores": seconds(runs, "sha256", *front),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="megabytes of weights")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), args.size, args.runs)
    for what, took in found.items():
        print(f"{what:45} {took:8.4f} s")
    if args.output:
        args.output.write_text(json.dumps({"machine": machine(), "megabytes": args.size, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
