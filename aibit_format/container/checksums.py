"""Computes checksums: xxh3_64 over 1 MiB leaves, and an xxh3_128 root that also covers the leaf table.

They detect damage, not malice: anyone can compute them (the spec's security chapter says what a signature adds).
Strong leaves are the SHA-256 of the same bytes, which nobody can find other bytes for. Both hash functions release the
GIL, so leaves are hashed by as many threads as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import xxhash

from .. import native
from ..native.cores import usable_cores
from .layout import LEAF, SHA256_SIZE

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH = 16  # leaves, or tensors, in one task: enough to hide the cost of scheduling it


def root(*pieces: bytes | memoryview) -> bytes:
    """Return the xxh3_128 of the pieces in order: 16 bytes in xxHash's canonical (big-endian) form."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def leaf_count(length: int) -> int:
    """Return the number of leaves that cover a region of ``length`` bytes."""
    return -(-length // LEAF)


def leaf(piece: bytes | memoryview) -> int:
    """Return the xxh3_64 of one leaf, as the integer that the leaf table stores."""
    return xxhash.xxh3_64_intdigest(piece)


def leaves(region: np.ndarray, which: Iterable[int] | None = None, jobs: int | None = None) -> np.ndarray:
    """Compute the digests of a region's leaves, u64 [number of leaves].

    Args:
        region: u8 [n], the whole region (documents, or data).
        which: indices of the leaves to hash; all by default.
        jobs: threads; as many as there are cores to use by default.
    """
    wanted = list(range(leaf_count(len(region)))) if which is None else list(which)

    def batch(indices: Sequence[int]) -> list[int]:
        first, end = indices[0], indices[-1] + 1
        chunk = region[first * LEAF : end * LEAF]
        if native.available and end - first == len(indices) and len(chunk) == len(indices) * LEAF:
            # All in one call without the GIL: taking it between two leaves would make threads wait.
            found = np.empty(len(indices), np.uint64)
            native.leaf_digests(chunk, LEAF, found)
            return found.tolist()
        return [leaf(region[i * LEAF : (i + 1) * LEAF].data) for i in indices]

    return np.array(in_threads(batch, wanted, jobs), dtype=np.uint64)


def strong_leaves(region: np.ndarray, jobs: int | None = None) -> np.ndarray:
    """Compute the SHA-256 of each of a region's leaves, u8 [number of leaves, 32]; see ``leaves``."""
    from hashlib import sha256  # slow to import, and seldom needed

    def batch(starts: Sequence[int]) -> list[bytes]:
        return [sha256(region[start : start + LEAF].data).digest() for start in starts]

    found = b"".join(in_threads(batch, range(0, len(region), LEAF), jobs))
    return np.frombuffer(found, np.uint8).reshape(-1, SHA256_SIZE)


class _Hash(Protocol):
    def __call__(self, region: np.ndarray, *, jobs: int | None = None) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class LeafTable:
    """Hold what all leaves of a file should hash to, by one hash function.

    Args:
        digests: one for each leaf, u64 [leaves] or u8 [leaves, bytes].
        compute: ``leaves`` or ``strong_leaves``.
    """

    digests: np.ndarray
    compute: _Hash

    def wrong(self, first: int, data: np.ndarray, jobs: int | None = None) -> Iterator[tuple[int, str, str]]:
        """Yield (leaf, expected, found) for each leaf that is not as it should be, digests in hex.

        Args:
            first: the leaf that ``data`` begins with.
            data: u8 [n], whole leaves, though the last may be the shorter one at the end of a region.
            jobs: threads; as many as there are cores to use by default.
        """
        found = self.compute(data, jobs=jobs)
        expected = self.digests[first : first + len(found)]
        equal = expected == found
        for i in np.flatnonzero(~(equal if equal.ndim == 1 else equal.all(1))).tolist():
            yield first + i, _hex(expected[i]), _hex(found[i])


def _hex(digest: np.ndarray | np.integer) -> str:
    return digest.tobytes().hex() if isinstance(digest, np.ndarray) else f"{int(digest):016x}"


def in_threads(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], jobs: int | None = None
) -> list[Result]:
    """Run ``work`` on batches of ``items`` in threads and return its results in order.

    If several batches fail, the error of the first one in that order is raised.

    Args:
        work: called with a batch; releases the GIL for most of its time.
        jobs: threads; as many as there are cores to use by default.
    """
    batches = [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]
    jobs = 1 if len(batches) < 2 else jobs or usable_cores()
    if jobs == 1:
        return [result for batch in batches for result in work(batch)]
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and not needed for a small file

    with ThreadPoolExecutor(jobs) as pool:
        return [result for results in pool.map(work, batches) for result in results]
