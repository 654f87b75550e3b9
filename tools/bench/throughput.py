"""What the row `throughput` does in a process: converting from memory to memory, beside what that cannot do without."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from tools.bench.probe import Result

_PIECE_ELEMENTS = 16 << 20  # bytes of one write


def throughput(source: str, tiny: str, target: str, scheme: str, rounds: int) -> Result:
    """Seconds, and seconds of all cores together, of each way in turn; every conversion also syncs and renames.

    Each is done twice at a time, and the second counts: it fills what the first has just left free. Other free memory a
    virtual machine may have given back to its host, and to get it again takes longer than what is measured.
    """
    from aibit_format.convert.convert import convert

    weights, out = Path(source) / "model.safetensors", Path(target)

    def converting(jobs: int | None) -> Callable[[], object]:
        return lambda: convert(source, target, scheme, jobs=jobs)

    def write(size: int) -> None:
        zeros = np.zeros(_PIECE_ELEMENTS, np.uint8).data
        file = os.open(target, os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(file, 0, size)
        for start in range(0, size, _PIECE_ELEMENTS):
            os.pwrite(file, zeros[: size - start], start)
        os.close(file)

    convert(tiny, target, scheme, overwrite=True)  # imports, the model's class, and torch's first operations
    written = convert(source, target, scheme, overwrite=True).file_bytes
    nbytes = weights.stat().st_size
    ways = {
        f"{scheme}, every core": converting(None),
        f"{scheme}, one thread": converting(1),
        f"{scheme}: mapping and hashing the source, one thread": lambda: xxhash.xxh3_128_digest(
            np.memmap(weights, np.uint8, "r").data
        ),
        f"{scheme}: writing as many bytes, one thread": lambda: write(written),
    }
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    cores: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(rounds):
        for label, way in ways.items():
            for _ in range(2):
                out.unlink(missing_ok=True)
                start, used = time.perf_counter(), time.process_time()
                way()
                took = time.perf_counter() - start, time.process_time() - used
            seconds[label].append(took[0])
            cores[label].append(took[1])
    out.unlink(missing_ok=True)
    return {"bytes": nbytes, "seconds": seconds, "cores": cores}
