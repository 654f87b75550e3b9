"""Several processes that write one sharded model together: which shards are whose, and what they tell each other.

What one of them finds out and all need, such as the digests of its shards, goes round as arrays of numbers, through
torch.distributed. Objects do not, as they would be pickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from ..errors import MissingPackageError, WriteError

_PATIENCE = timedelta(days=2)  # how long one waits for the slowest


class RankError(WriteError):
    """Another process of those that write one model has failed, or is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes, and which of them this is. Number ``i`` of whatever there is to do is rank ``i % count``'s."""

    rank: int = 0
    count: int = 1
    group: Any = None  # torch's

    def mine(self, number: int) -> range:
        """What of ``number`` things this process does."""
        return range(self.rank, number, self.count)

    def share(self, rows: np.ndarray, owners: np.ndarray | None = None) -> np.ndarray:
        """[n, ...] with each row as the rank has it whose row it is; all processes call this in the same order.

        Args:
            rows: equal in shape and dtype in all of them.
            owners: [n], the rank of each row; ``i % count`` by default.

        Raises:
            RankError: another process has failed.
        """
        self.agree()
        if self.count == 1 or not rows.size:
            return rows
        if owners is None:
            owners = np.arange(len(rows)) % self.count
        found = rows.copy()
        for rank, theirs in enumerate(self._gather(found.reshape(-1).view(np.uint8))):
            here = owners == rank
            found[here] = theirs.view(rows.dtype).reshape(rows.shape)[here]
        return found

    def agree(self) -> None:
        """Wait until all have come so far.

        Raises:
            RankError: another process has failed.
        """
        if self.count > 1:
            failed = np.flatnonzero(np.concatenate(self._gather(np.zeros(1, np.uint8))))
            if len(failed):
                raise RankError(f"rank {failed[0]} of {self.count} has failed, so there is no model; it says why")

    def same(self, digest: bytes) -> None:
        """See to it that all are about to do the same, of which ``digest`` is 16 bytes.

        Raises:
            RankError: they are not.
        """
        if self.count == 1:
            return
        rows = np.zeros((self.count, 16), np.uint8)
        rows[self.rank] = np.frombuffer(digest, np.uint8)
        others = np.flatnonzero((self.share(rows) != rows[self.rank]).any(1))
        if len(others):
            raise RankError(
                f"ranks {self.rank} and {others[0]} are to write different models: give all of them the same source "
                "and options, and the same versions of all libraries"
            )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails in here fails in all processes, which hear of it when they next ``share`` or ``agree``."""
        try:
            yield
        except RankError:
            raise
        except Exception:
            if self.count > 1:
                with contextlib.suppress(RankError):
                    self._gather(np.ones(1, np.uint8))
            raise

    def _gather(self, data: np.ndarray) -> list[np.ndarray]:
        """u8 [n] of every rank."""
        import torch
        import torch.distributed as dist

        parts = [torch.empty(len(data), dtype=torch.uint8) for _ in range(self.count)]
        try:
            dist.all_gather(parts, torch.from_numpy(data), group=self.group)
        except RuntimeError as error:  # of torch: a connection is lost, or nobody answers
            raise RankError(f"rank {self.rank} of {self.count}: another process is gone: {error}") from error
        return [part.numpy() for part in parts]


ALONE = Ranks()


def of_torchrun() -> Ranks:
    """Return the processes that torchrun has started, connected; each of them calls this once."""
    _distributed().init_process_group("gloo")
    return of_torch()


def of_torch() -> Ranks:
    """All processes of torch.distributed, which talk over gloo whatever its default is; all of them must call this.

    Raises:
        WriteError: torch.distributed is not initialized.
    """
    dist = _distributed()
    if not (dist.is_available() and dist.is_initialized()):
        raise WriteError(
            "torch.distributed is not initialized: start the processes with torchrun and call "
            "torch.distributed.init_process_group() before converting"
        )
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_PATIENCE))


def _distributed() -> Any:
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise MissingPackageError("several processes need torch: pip install 'aibit-format[hf]'") from error
    return dist
