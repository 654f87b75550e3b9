"""The sections of ``gpu.py`` that bring weights to a GPU: are they the same, and how fast."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aibit_format.file.device_stream import ArenaLayout, DirectReader, Ring, stream
from aibit_format.file.reader import File
from aibit_format.torch.load import arena
from aibit_format.torch.load.model import load_model
from tools.bench import cold, models
from tools.bench.gpu_run import GIGA, Run, pretrained, quantized

# threads, slots, bytes of a piece: the default first.
_RINGS = [(8, 16, 4), (4, 8, 4), (8, 8, 4), (12, 12, 4), (12, 24, 4), (16, 32, 4), (8, 16, 1), (8, 16, 2), (8, 16, 8),
          (12, 24, 8), (2, 4, 8), (1, 2, 8)]  # fmt: skip


def logits(run: Run, model: Any) -> torch.Tensor:
    """f32 [2, 64, vocabulary], on the host."""
    ids = torch.arange(1, 129, device=run.device).view(2, 64)
    with torch.inference_mode():
        return model(ids).logits.float().cpu()


def correct(run: Run) -> None:
    """Bytes, logits against transformers' own 8-bit and 4-bit models on this device, and memory."""
    for scheme in ("int8", "nf4"):
        file = File(run.aibit(scheme))
        planes = [plane for name in file for plane in file.info(name).planes]
        filled = arena.Arena(file, planes, run.device)
        wrong = sum(
            not np.array_equal(filled.view(plane).cpu().flatten().view(torch.uint8).numpy(),
                               file.storage.read_at(plane.offset, plane.length))
            for plane in planes
        )  # fmt: skip
        run.note(f"{scheme}: planes that arrived with other bytes", wrong, "", "<= 0")
        size = sum(length for _, length in {(plane.offset, plane.length) for plane in planes})
        del filled
        ours, peak = run.peak(lambda: load_model(run.aibit(scheme), run.device))  # noqa: B023 - called at once
        if peak is not None:
            run.note(f"{scheme}: GPU memory at most, of the file's data", peak / size, "", "<= 1.02")
        expected = logits(run, ours)
        run.note(f"{scheme}: logits finite", float(expected.isfinite().all()), "", ">= 1")
        theirs = pretrained(run, run.saved(scheme))
        run.note(f"{scheme}: largest difference to the same bytes in transformers",
                 float((logits(run, theirs) - expected).abs().max()), "", "<= 0")  # fmt: skip
        del theirs
        made_here = quantized(run, scheme)
        difference = float((logits(run, made_here) - expected).abs().max() / expected.abs().max())
        what = f"{scheme}: difference to load_in_{scheme[-1] if scheme == 'nf4' else 8}bit here, of the largest logit"
        run.note(what, difference, "", "<= 0.05")
        layers = {name: module for name, module in ours.named_modules() if "Linear" in type(module).__name__}
        layers.pop("lm_head")  # is not quantized
        pairs = [(module.weight.data, made_here.get_submodule(name).weight.data) for name, module in layers.items()]
        differing = sum(int((a.flatten() != b.flatten()).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        run.note(f"{scheme}: codes that differ from those made here", differing, "", "<= 0.001")
        del ours, made_here, layers, pairs
        gc.collect()


def link(run: Run) -> None:
    """The ceilings: one large copy from pinned memory, and from the page cache into the slots without a device."""
    size = min(run.bytes // 8, 1 << 28)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=run.on_gpu)
    target = torch.empty(size, dtype=torch.uint8, device=run.device)

    def copies() -> None:
        for _ in range(8):
            target.copy_(host, non_blocking=True)

    copies()
    run.rate("pinned host to device", copies, 8 * size, rounds=5)
    file = File(run.large())
    models.read_through(run.large())
    layout = everything(file)
    run.rate("page cache to slots alone", lambda: stream(file, layout, Nowhere(run), Ring()), layout.size)
    run.rate("...with digests", lambda: stream(File(run.large(), "touched"), layout, Nowhere(run), Ring()), layout.size)


class Nowhere:
    """A link that brings nothing anywhere, over slots as the device's link has them."""

    def __init__(self, run: Run) -> None:
        self._link = arena.LINKS[run.device.type](torch.empty(0, dtype=torch.uint8, device=run.device))

    def slot(self, size: int) -> Any:
        slot: Any = self._link.slot(size)
        slot.send = lambda *_: None
        return slot

    def finish(self) -> None:
        self._link.finish()


def everything(file: File) -> ArenaLayout:
    return ArenaLayout.of([plane for name in file for plane in file.info(name).planes], file.data)


def warm(run: Run) -> None:
    """From the page cache to the device: rings, digests on the way, and what others do with as many bytes."""
    file = File(run.large())
    planes = [plane for name in file for plane in file.info(name).planes]
    size = everything(file).size
    models.read_through(run.large())
    arena.Arena(file, planes, run.device)  # the first one asks the driver for memory
    best = 0.0
    for threads, slots, piece in _RINGS:
        run.need(10 if run.on_gpu else 1)
        ring = Ring(threads, slots, piece << 20)
        what = f"aibit, {threads} threads, {slots} slots of {piece} MiB"
        fill: Callable[[], Any] = lambda ring=ring: arena.Arena(file, planes, run.device, ring)  # noqa: E731
        best = max(best, run.rate(what, fill, size, ">= 45" if (threads, slots, piece) == _RINGS[0] else ""))
    with contextlib.suppress(KeyError):
        ceiling = run.value("pinned host to device")
        default = run.value("aibit, {} threads, {} slots of {} MiB".format(*_RINGS[0]))
        run.note("aibit, the default ring, of the pinned rate", default / ceiling, "", ">= 0.8")
        run.note("aibit, the best ring, of the pinned rate", best / ceiling, "")
    run.rate("aibit, digests on the way", lambda: arena.Arena(File(run.large(), "touched"), planes, run.device), size)
    run.need(10 if run.on_gpu else 1)
    for name, way in others(run).items():
        models.read_through(run.large_safetensors())
        run.rate(name, way, run.large_safetensors().stat().st_size, rounds=2)


def others(run: Run) -> dict[str, Callable[[], Any]]:
    """What brings as many bytes of safetensors to the device."""
    from safetensors.torch import load_file

    path = str(run.large_safetensors())
    ways: dict[str, Callable[[], Any]] = {"safetensors": lambda: load_file(path, device=str(run.device))}
    if find_spec("fastsafetensors") is None:
        run.found["left_out"]["fastsafetensors"] = "not installed"
    elif run.on_gpu:
        ways["fastsafetensors"] = lambda: fast(path, str(run.device))
    return ways


def fast(path: str, device: str) -> int:
    """Bytes that fastsafetensors brought; its memory goes when it is closed."""
    from fastsafetensors import fastsafe_open

    with fastsafe_open([path], device=device, nogds=True) as opened:
        return sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118 - no mapping


def disk(run: Run) -> None:
    """From the disk to the device, pages dropped before each round."""
    path = run.large()
    size, file = path.stat().st_size, File(path)
    planes = [plane for name in file for plane in file.info(name).planes]
    ways: dict[str, Callable[[], Any]] = {
        "one direct stream of 4 MiB, to nowhere": lambda: direct(path),
        "aibit, cold": lambda: arena.Arena(file, planes, run.device),
        "aibit, cold, one thread": lambda: arena.Arena(file, planes, run.device, Ring(1, 2)),
        "aibit, cold, digests on the way": lambda: arena.Arena(File(path, "touched"), planes, run.device),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    stayed: list[float] = []
    for _ in range(3 if run.on_gpu else 1):
        for name, way in ways.items():
            run.need(2 * size / GIGA / min(rates[name] or [2]) if run.on_gpu else 1)
            stayed.append(cold.drop(path) or 0.0)
            rates[name] += [size / seconds / GIGA for seconds in run.seconds(way, 1)]
    for name, samples in rates.items():
        run.note(name, max(samples), "GB/s", "", samples)
    base, ours = (rates[name] for name in list(ways)[:2])
    run.note("aibit, cold, of the direct stream, round by round",
             statistics.median(a / b for a, b in zip(ours, base, strict=True)), "", ">= 0.9")  # fmt: skip
    run.note("largest share of pages that could not be dropped", max(stayed))
    for name, way in others(run).items():
        run.need(2 * size / GIGA if run.on_gpu else 1)
        run.rate(f"{name}, cold", way, size, rounds=1, first=lambda: cold.drop(run.large_safetensors()))


def direct(path: Path) -> None:
    """The file, front to back, around the page cache."""
    with File(path) as file:
        source = DirectReader(file.storage)
        memory = np.frombuffer(torch.empty(5 << 20, dtype=torch.uint8).numpy(), np.uint8)
        memory = memory[-memory.ctypes.data % 4096 :][: 4 << 20]
        for offset in range(0, file.storage.size, 4 << 20):
            source.read(offset, min(4 << 20, file.storage.size - offset), memory)
        source.close()


def load(run: Run) -> None:
    """Until there is a model that can run, all files in memory."""
    for scheme in ("int8", "nf4"):
        path, saved = run.aibit(scheme), run.saved(scheme)
        for each in (path, saved):
            models.read_through(each)
        ways: dict[str, Callable[[], Any]] = {
            f"aibit {scheme}": lambda path=path: load_model(path, run.device),
            f"aibit {scheme}, verify='full'": lambda path=path: load_model(path, run.device, verify="full"),
            f"transformers, the same bytes saved in {scheme}": lambda saved=saved: pretrained(run, saved),
            f"transformers, quantizing to {scheme}": lambda scheme=scheme: quantized(run, scheme),
        }
        for name, way in ways.items():
            run.need(5)
            samples = run.seconds(way)
            run.note(name, statistics.median(samples), "s", "", samples)
