"""Measures what `edit`, `split` and `merge` cost in a folder: ``python -m tools.bench.rewriting FOLDER [--size 2GB]``.

A model of random int8 codes is made there, and rewritten in each of the ways in which bytes get into a new file
(``aibit_format/io/extents.py``): sharing extents where the file system can, copying in the kernel, and copying through
this process. For each: seconds, until the new files are synced, and the bytes of them whose extents are shared, as the
kernel says (FIEMAP). The source is in the page cache.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from aibit_format.file import rewrite
from aibit_format.file.sharded_writer import parse_size
from aibit_format.file.writer import Tensor, Writer, plan
from aibit_format.io import extents
from aibit_format.schemes import make
from tools.bench.machine import machine

_ROWS, _COLUMNS = 4096, 8192  # of a tensor: 32 MiB of codes

_FIEMAP = struct.Struct("=QQIIII")  # struct fiemap: start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # struct fiemap_extent: logical, physical, length, flags
_FS_IOC_FIEMAP, _SYNC, _LAST, _SHARED = 0xC020660B, 1, 1, 0x2000
_AT_ONCE = 256  # extents asked for at a time


def shared_bytes(path: str | os.PathLike[str]) -> int:
    """Return how many bytes of a file lie in extents that another file has too, as Linux says.

    Raises:
        OSError: the file system does not say.
    """
    found, start, last = 0, 0, False
    with open(path, "rb") as file:
        while not last:
            answer = bytearray(_FIEMAP.pack(start, (1 << 64) - 1 - start, _SYNC, 0, _AT_ONCE, 0))
            answer += bytes(_AT_ONCE * _EXTENT.size)
            fcntl.ioctl(file.fileno(), _FS_IOC_FIEMAP, answer)
            count = _FIEMAP.unpack_from(answer)[3]
            last = not count
            for logical, _, length, flags in _EXTENT.iter_unpack(answer[_FIEMAP.size :][: count * _EXTENT.size]):
                found += length if flags & _SHARED else 0
                start, last = logical + length, bool(flags & _LAST)
    return found


def make_model(path: Path, size: int) -> None:
    """Write a model of about so many bytes of random int8 codes with their scales."""
    scheme, random = make("int8"), np.random.default_rng(0)
    tensors = [
        Tensor(f"layers.{i}.weight", (_ROWS, _COLUMNS), "f32", scheme) for i in range(-(-size // (_ROWS * _COLUMNS)))
    ]
    with Writer(path, plan(tensors, {"author.name": "nobody"}, {})) as out:
        for tensor in tensors:
            codes = random.integers(-127, 128, (_ROWS, _COLUMNS), np.int8)
            out.write(tensor.name, {"codes": codes, "row_absmax": random.random(_ROWS, np.float32)})
        out.commit()


# (the model, the first of its shards, the file to write) -> the files written
VERBS: dict[str, Callable[[Path, str, Path], list[str]]] = {
    "edit": lambda path, first, out: rewrite.edit(path, out, metadata={"author.name": "we"}),
    "split": lambda path, first, out: rewrite.split(path, out, path.stat().st_size // 3),
    "merge": lambda path, first, out: rewrite.merge(first, out),
}


def measure(folder: Path, size: int, runs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for each verb and way, the median of the seconds, and the bytes shared."""
    model, ways = folder / "m.aibit", dict(extents.WAYS)
    make_model(model, size)
    first = VERBS["split"](model, "", folder / "s.aibit")[0]
    found: dict[str, dict[str, dict[str, float]]] = {verb: {} for verb in VERBS}
    try:
        for position, way in enumerate(ways):
            extents.WAYS.clear()
            extents.WAYS.update(list(ways.items())[position:])
            for verb, work in VERBS.items():
                seconds, shared = [], 0
                for _ in range(runs):
                    subprocess.run(["sync"], check=True)
                    begun = time.perf_counter()
                    paths = work(model, first, folder / "out.aibit")
                    seconds.append(time.perf_counter() - begun)
                    shared = sum(map(_shared, paths))
                    for path in paths:
                        os.unlink(path)
                found[verb][way] = {"seconds": statistics.median(seconds), "shared": shared}
    finally:
        extents.WAYS.clear()
        extents.WAYS.update(ways)
    return found


def _shared(path: str) -> int:
    try:
        return shared_bytes(path)
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder on the file system to measure; its files are removed after")
    parser.add_argument("--size", type=parse_size, default=2 << 30, help="of the model (default: 2GiB)")
    parser.add_argument("--runs", type=int, default=3, help="of each verb in each way (default: 3)")
    parser.add_argument("--out", type=Path, help="write a JSON of the figures, too")
    given = parser.parse_args()
    with TemporaryDirectory(dir=given.folder) as work:
        found = measure(Path(work), given.size, given.runs)
    print("| verb | way | seconds | shared, MiB |\n|---|---|--:|--:|")
    for verb, ways in found.items():
        for way, row in ways.items():
            print(f"| {verb} | {way} | {row['seconds']:.3f} | {row['shared'] / 2**20:.0f} |")
    if given.out is not None:
        result = {"machine": machine(), "size": given.size, "runs": given.runs, "verbs": found}
        given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
