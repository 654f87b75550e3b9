"""Brings a file's planes to a device: one allocation, filled in one pass; parameters are views of it.

The layout in the file is the layout on the device: planes lie in the arena as they lie in the data region, scales
pooled at its beginning, so that one copy brings them all. Nothing else is allocated on the device. On the host, copies
start from a small ring of pinned buffers (see ``stream``): pinning the mapping itself takes 0.1 s a GB, and is refused
for read-only pages by default.

Only ``Cuda`` needs a GPU: everything else here and in ``stream`` runs the same over ``Memory``.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...container.layout import pooled
from ...container.tables import Plane
from ...dtypes import stored_shape
from ...file.device_stream import ArenaLayout, Link, Ring, Slot, Streamed, stream
from ...file.reader import File
from ...interop import plane_dtype


class Cuda:
    """Sends over the bus to a GPU, on a stream of its own."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        self.stream: Any = torch.cuda.Stream(target.device)
        # The allocator may have given memory that kernels which the current stream has queued still use.
        self.stream.wait_stream(torch.cuda.current_stream(target.device))

    def slot(self, size: int) -> Slot:
        return _Pinned(self, size)

    def finish(self) -> None:
        # The host waits, so that errors of copies come here, and every stream finds the bytes from now on.
        self.stream.synchronize()


class _Pinned:
    """Holds a slot of page-locked memory, and the event that says when the device has read it."""

    def __init__(self, link: Cuda, size: int) -> None:
        self._link = link
        self._tensor = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.memory = self._tensor.numpy()
        # Blocking: a thread that waits sleeps, and leaves its core to those that read.
        self._sent: Any = torch.cuda.Event(blocking=True)

    def wait(self) -> None:
        self._sent.synchronize()  # before it is recorded, there is nothing to wait for

    def send(self, first: int, count: int, at: int) -> None:
        link = self._link
        with torch.cuda.stream(link.stream):  # sets the device too, which is each thread's own
            link.target[at : at + count].copy_(self._tensor[first : first + count], non_blocking=True)
            self._sent.record(link.stream)


class Memory:
    """Sends to memory of this machine, at once: stands in for a GPU's link in tests and measurements."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target.numpy()

    def slot(self, size: int) -> Slot:
        return _Plain(self, size)

    def finish(self) -> None:
        return None


class _Plain:
    """Holds a slot of plain memory that begins at a page."""

    def __init__(self, link: Memory, size: int) -> None:
        self._link = link
        self.memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)

    def wait(self) -> None:
        return None

    def send(self, first: int, count: int, at: int) -> None:
        self._link.target[at : at + count] = self.memory[first : first + count]


# Type of device -> its link, from the u8 tensor that is to be filled. Other devices get a copy of each plane.
LINKS: dict[str, Callable[[torch.Tensor], Link]] = {"cuda": Cuda}


class Arena:
    """Holds planes of a file on a device, in one u8 tensor.

    Args:
        file: open; if it checks what is read, every leaf is checked as it passes.
        planes: those that are wanted. Others are not brought, but for what lies in gaps too short to make two copies.
        device: of a type in ``LINKS``.
        ring: threads and buffers.

    Raises:
        FormatError: see ``stream``.
    """

    memory: torch.Tensor  # u8 [layout.size]
    streamed: Streamed

    def __init__(self, file: File, planes: Iterable[Plane], device: torch.device, ring: Ring | None = None) -> None:
        self.layout = ArenaLayout.of(planes, file.data)
        # Not an inference tensor, wherever this is called: the threads that fill it are in no such mode.
        with torch.inference_mode(False):
            self.memory = torch.empty(self.layout.size, dtype=torch.uint8, device=device)
        link = LINKS[device.type](self.memory)
        self.streamed = stream(file, self.layout, link, ring or Ring(), cached=_first_bulk(file))

    def __contains__(self, plane: Plane) -> bool:
        return not plane.length or self.layout.place(plane.offset, plane.length) is not None

    def view(self, plane: Plane) -> torch.Tensor:
        """Return the plane in its dtype and shape, as a view of the arena.

        Raises:
            KeyError: it was not brought.
        """
        at = self.layout.place(plane.offset, plane.length) if plane.length else 0
        if at is None:
            raise KeyError(f"{plane.role} at {plane.offset}: not in the arena")
        found = self.memory[at : at + plane.length].view(plane_dtype(plane.dtype))
        return found.view(stored_shape(plane.dtype, plane.shape))


def _first_bulk(file: File) -> int:
    """Return where the pool of scales ends; their values are checked on the host, in the mapping."""
    info = file.tables
    table = info.plane_table
    bulk = table["offset"][~pooled(table["role"], table["length"], info.alignment)]
    return int(bulk.min()) if len(bulk) else info.file_size
