"""Fill arenas on a processor, with devices that are slow."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from aibit_format import schemes
from aibit_format.container.layout import LEAF
from aibit_format.container.tables import Plane
from aibit_format.file import device_stream, writer
from aibit_format.file.reader import File
from aibit_format.torch.load import arena
from aibit_format.torch.load.arena import Arena

CPU = torch.device("cpu")
SMALL = device_stream.Ring(threads=3, slots=4, piece=LEAF)


class Late:
    """To memory of this machine, as late as a link may."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target, self.slots = target.numpy(), []

    def slot(self, size: int) -> LateSlot:
        self.slots.append(LateSlot(self, size))
        return self.slots[-1]

    def finish(self) -> None:
        for slot in self.slots:
            slot.wait()


class LateSlot:
    def __init__(self, link: Late, size: int) -> None:
        self.link, self.sent = link, None
        self.memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)

    def wait(self) -> None:
        if self.sent is not None:
            first, count, at = self.sent
            self.link.target[at : at + count] = self.memory[first : first + count]
            self.sent = None

    def send(self, first: int, count: int, at: int) -> None:
        assert self.sent is None
        self.sent = first, count, at


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """The arena for a CPU, too: models here are loaded as they are for a GPU."""
    monkeypatch.setitem(arena.LINKS, "cpu", Late)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Some 9 MiB in tensors of many sizes and schemes, on a disk and not in memory, if the system forgets it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, (scheme, shape) in enumerate([
        ("int8", (1024, 2048)), ("f32", (3,)), ("nf4", (640, 1024)), ("int8", (900, 1000)), ("nf4-cpu", (1024, 1024)),
        ("f16", (2000, 999)), ("f32", ()), ("nf4,nested=1", (64, 64)), ("int8-zp,group=64", (512, 512)), ("u8", (0, 3)),
        ("f16", (500, 333)),
    ]):  # fmt: skip
        made = schemes.parse(scheme)
        dtype = scheme if scheme in ("f32", "f16", "u8") else "f16"
        values = rng.standard_normal(shape).astype({"f32": np.float32, "f16": np.float16, "u8": np.uint8}[dtype])
        tensors[writer.Tensor(f"t{i}", shape, dtype, made)] = made.encode(values, dtype)
    target = tmp_path_factory.mktemp("arena") / "m.aibit"
    writer.write(target, tensors)
    return target


def every(file: File) -> list[Plane]:
    return [plane for name in file for plane in file.info(name).planes]


def assert_equal(filled: Arena, file: File, planes: list[Plane]) -> None:
    for plane in planes:
        found = filled.view(plane)
        assert found.shape == plane.shape
        assert found.cpu().flatten().view(torch.uint8).numpy().tobytes() == file.view(plane).tobytes()
