"""Checksums: xxh3_64 over 1 MiB leaves, and an xxh3_128 root that also covers the leaf table.

They find damage, not malice: anyone can compute them (the spec's security chapter says what a signature adds).
xxhash releases the GIL, so leaves are hashed by as many threads as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import xxhash

from .. import native
from ..native.cores import usable_cores
from .layout import LEAF

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH = 16  # leaves, or tensors, of one task: enough to hide the cost of handing it out


def root(*pieces: bytes | memoryview) -> bytes:
    """xxh3_128 over the pieces in order, 16 bytes in xxHash's canonical (big-endian) form."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def leaf_count(length: int) -> int:
    """Leaves that cover a region of ``length`` bytes."""
    return -(-length // LEAF)


def leaf(piece: bytes | memoryview) -> int:
    """xxh3_64 of one leaf, as the integer that the leaf table stores."""
    return xxhash.xxh3_64_intdigest(piece)


def leaves(region: np.ndarray, which: Iterable[int] | None = None, jobs: int | None = None) -> np.ndarray:
    """Digests of a region's leaves, u64 [number of leaves].

    Args:
        region: u8 [n], the whole region (documents, or data).
        which: indices of the leaves wanted; all by default.
        jobs: threads; as many as there are cores to use by default.
    """
    wanted = list(range(leaf_count(len(region)))) if which is None else list(which)

    def batch(indices: Sequence[int]) -> list[int]:
        first, end = indices[0], indices[-1] + 1
        chunk = region[first * LEAF : end * LEAF]
        if native.available and end - first == len(indices) and len(chunk) == len(indices) * LEAF:
            # All of them without the interpreter's lock: between two leaves, threads would wait for it.
            found = np.empty(len(indices), np.uint64)
            native.leaf_digests(chunk, LEAF, found)
            return found.tolist()
        return [leaf(region[i * LEAF : (i + 1) * LEAF].data) for i in indices]

    return np.array(in_threads(batch, wanted, jobs), dtype=np.uint64)


def in_threads(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], jobs: int | None = None
) -> list[Result]:
    """What ``work`` gives for batches of ``items``, joined in their order; the first error in that order is raised.

    Args:
        work: takes some items, and lets go of the interpreter's lock for most of its time.
        jobs: threads; as many as there are cores to use by default.
    """
    batches = [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]
    jobs = 1 if len(batches) < 2 else jobs or usable_cores()
    if jobs == 1:
        return [result for batch in batches for result in work(batch)]
    from concurrent.futures import ThreadPoolExecutor  # not worth importing for a look at a small file

    with ThreadPoolExecutor(jobs) as pool:
        return [result for results in pool.map(work, batches) for result in results]
