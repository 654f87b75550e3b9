"""Measures what opening the worst front matters costs: ``python -m tools.bench.opening [--runs 5]``.

Each file has as much of one thing as the format allows, up to a front matter of 64 MiB, and is valid. It is opened in a
process of its own, which has imported the package and opened another file before: seconds, and how far the peak of
resident memory rises, beside the front matter's size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aibit_format.container import layout
from tools import ROOT
from tools.bench.machine import machine
from tools.fixtures import file_builder, limits

_PROCESS = """
import json, sys, time
import aibit_format as aibit

def resident(what):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))

aibit.open(sys.argv[1]).close()
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # forget the peak of the imports
before, begun = resident("VmRSS"), time.perf_counter()
file = aibit.open(sys.argv[2])
opened = time.perf_counter() - begun
names = list(file)
info = file.info(names[-1]) if names else None
print(json.dumps([opened, time.perf_counter() - begun, resident("VmHWM") - before]))
"""


def many_tensors(length: int) -> bytes:
    """Make a file of tensors without elements whose front matter is as long as may be.

    A tensor takes a record of 96 bytes, one of 32 for its plane, and its name: here 8 letters and a line feed.
    """
    count = (length - 4096) // (layout.TENSOR.sizeof() + layout.PLANE.sizeof() + 9)
    return _tensors(min(count, layout.MAX_TENSORS), 1)


def all_tensors(length: int) -> bytes:
    """Make a file of as many aliases of one tensor: no planes, and every rule about aliases."""
    count = (length - 4096) // (layout.TENSOR.sizeof() + 9)
    return _tensors(min(count, layout.MAX_TENSORS), 0)


def _tensors(count: int, planes: int) -> bytes:
    places = np.arange(count)
    tensors = np.zeros(count, file_builder.dtype_of(layout.TENSOR))
    word = b"f32\n"
    tensors["name_offset"], tensors["name_length"] = len(word) + 9 * places, 8
    tensors["dtype"], tensors["rank"], tensors["plane_count"] = 12, 2, planes
    tensors["shape"][:, 0] = places + 1 if planes else 1  # other shapes: planes are computed for each
    tensors["first_plane"] = places if planes else 0
    if not planes:
        tensors["plane_count"][0] = 1
        tensors["flags"][1:] = layout.TENSOR_ALIAS
    schemes = np.zeros(1, file_builder.dtype_of(layout.SCHEME))
    schemes["name_length"], schemes["version"] = 3, 1
    rows = np.zeros(count if planes else 1, file_builder.dtype_of(layout.PLANE))
    rows["tensor"], rows["role"], rows["dtype"] = places[: len(rows)], 1, 12
    names = np.char.mod("%08x\n", places).astype("S9").tobytes()
    tables = {"schemes": schemes, "tensors": tensors, "planes": rows}
    bodies = {name: (len(found), found.tobytes()) for name, found in tables.items()}
    return file_builder.rebuilt(**bodies, strings=(0, word + names))(limits.EMPTY)


WORST: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tensors": ("tensors, each of another shape, with its plane", lambda: many_tensors(layout.MAX_FRONT_MATTER)),
    "aliases": ("aliases of one tensor", lambda: all_tensors(layout.MAX_FRONT_MATTER)),
    "strings": ("strings in metadata", lambda: limits.many_strings(layout.MAX_STRINGS).whole),
    "metadata": ("metadata entries", lambda: limits.many_entries(layout.MAX_METADATA)),
    "schemes": ("schemes, each used by a tensor", lambda: limits.many_schemes(layout.MAX_SCHEMES)),
    "documents": ("documents", lambda: limits.many_documents(layout.MAX_DOCUMENTS)),
    "private": ("a private section", lambda: limits.long_front_matter(layout.MAX_FRONT_MATTER).whole),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes for each file (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("opening.json"), help="the JSON (default: opening.json)")
    given = parser.parse_args()
    hello = ROOT / "fixtures" / "container" / "hello.aibit"
    found = {}
    print("| as much as may be of | front matter, MiB | open, s | open and describe a tensor, s | memory, MiB |")
    print("|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (what, make) in WORST.items():
            path = Path(folder) / f"{name}.aibit"
            path.write_bytes(make())
            front = int.from_bytes(path.read_bytes()[24:32], "little")
            command = [sys.executable, "-c", _PROCESS, str(hello), str(path)]
            rows = [
                json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout)
                for _ in range(given.runs)
            ]
            opened, described, memory = (statistics.median(column) for column in zip(*rows, strict=True))
            found[name] = {"front_matter": front, "open": opened, "describe": described, "memory": memory}
            row = f"| {what} | {front / 2**20:.1f} | {opened:.2f} | {described:.2f} | {memory / 2**20:.0f} |"
            print(row, flush=True)
            path.unlink()
    result = {"machine": machine(), "runs": given.runs, "worst": found}
    given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
