"""What a process does with files whose pages are not in memory: drop them, and say whether they went."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

from tools.bench.loaders import loader, use
from tools.bench.probe import Clock, Result

PIECE = 4 << 20  # bytes of one direct read
_SPOTS = 64  # pages of a file that are asked for


def drop(path: Path) -> float | None:
    """Drop the pages of a file, or of the files of a folder; the largest share that stayed, None if nobody can tell."""
    shares = [_drop(file) for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    return None if None in shares else max(share for share in shares if share is not None)


def _drop(path: Path) -> float | None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)  # what waits to be written cannot be dropped
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        # Asking for a page that is not there may start reading ahead of it: told that access is random, the system
        # reads that page alone, and it is dropped again.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        pages = -(-os.fstat(file).st_size // mmap.PAGESIZE)
        count = min(_SPOTS, pages)  # no page twice, for the first look may have brought it in
        spots = [_resident(file, mmap.PAGESIZE * (pages * i // count)) for i in range(count)]
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    if None in spots:
        return None
    return sum(map(bool, spots)) / len(spots) if spots else 0.0


def _resident(file: int, at: int) -> bool | None:
    """Whether a page is in memory; None where the file system does not say."""
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return None


def cold(way: str, path: str, tiny: str) -> Result:
    """Load and first forward from a file that is not in memory. The libraries are: a tiny model went before it."""
    from aibit_format.io.readahead import prefetch

    ahead = way == "aibit, prefetch"
    run = loader("aibit" if ahead else way)
    use(run(tiny))
    gc.collect()  # pages that somebody maps stay
    left = drop(Path(path))
    with Clock() as clock:
        if ahead:
            prefetch(path)
        model = run(path)
        loaded = clock.so_far()
        use(model)
    return {"seconds": clock.seconds, "load": loaded, "left": left}


def stream(way: str, path: str) -> Result:
    """Reading a file that is not in memory from front to back, and nothing else; None for seconds if it cannot."""
    from aibit_format.io.readahead import read_ahead

    size = os.path.getsize(path)
    buffer = mmap.mmap(-1, PIECE)  # direct reads want aligned memory
    left = drop(Path(path))
    with Clock() as clock:
        got = read_ahead(path) if way == "read_ahead" else _direct(path, size, buffer)
    return {"seconds": clock.seconds if got is not None else None, "bytes": size, "read": got, "left": left}


def _direct(path: str, size: int, buffer: mmap.mmap) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # not on this file system
        return None
    try:
        return sum(os.preadv(file, [buffer], at) for at in range(0, size, PIECE))
    finally:
        os.close(file)
