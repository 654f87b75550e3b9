"""Loading onto a GPU and computing there: ``python tools/bench/gpu.py [SECTION ...]``, in ten minutes at most.

What is measured is compared with what the same run measures of the link and of the disk. Correctness comes first. The
JSON is written after every section, so that what was found stays if the run is ended; the table is printed last.
``--device cpu`` goes the same way with small files and no link, to see that the script works. See NOTES.md.
"""

# ruff: noqa: E402 - the package is imported from the repository, whether it is installed or not

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import cold
import models
import numpy as np
import torch
from figures import number
from run import machine

from aibit_format import convert, writer
from aibit_format.exports import export
from aibit_format.reader import File
from aibit_format.schemes import make
from aibit_format.stream import Layout, Ring, Source, stream
from aibit_format.torch import arena
from aibit_format.torch.model import load_model

_GIGA = 1e9
_MATRICES, _COLUMNS = 20, 8192  # of the large file
_PROMPT, _TOKENS = 128, 32
# threads, slots, bytes of a piece: the default first.
_RINGS = [(8, 16, 4), (4, 8, 4), (8, 8, 4), (12, 12, 4), (12, 24, 4), (16, 32, 4), (8, 16, 1), (8, 16, 2), (8, 16, 8),
          (12, 24, 8), (2, 4, 8), (1, 2, 8)]  # fmt: skip


class NoTimeError(Exception):
    """There is no time left for what comes next."""


class Run:
    """The settings of a run, its files, and what it has found."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.work, self.out = given, given.work.resolve(), given.out
        self.device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
        self.on_gpu = self.device.type == "cuda"
        self.model = given.model or ("1.1b" if self.on_gpu else "tiny")
        self.bytes = int((given.gigabytes or (8 if self.on_gpu else 0.008)) * _GIGA)
        self.deadline = time.monotonic() + given.budget
        self.found: dict[str, Any] = {
            "machine": machine() | {"gpu": torch.cuda.get_device_name() if self.on_gpu else None,
                                    "cuda": torch.version.cuda, "large_file_bytes": self.bytes},
            "model": self.model, "rows": [], "failed": {}, "left_out": {}, "seconds": {},
        }  # fmt: skip
        self.section = ""

    def note(self, what: str, value: Any, unit: str = "", wanted: str = "", samples: list[float] | None = None) -> None:
        """A row of the table. ``wanted``, such as ``">= 45"``, is what it has to be on an H200."""
        row = {"section": self.section, "what": what, "value": value, "unit": unit}
        if wanted:
            sign, limit = wanted.split()
            row |= {"wanted": wanted, "met": value >= float(limit) if sign == ">=" else value <= float(limit)}
        if samples is not None:
            row["samples"] = samples
        self.found["rows"].append(row)

    def value(self, what: str) -> Any:
        """What an earlier row says; KeyError without one."""
        for row in self.found["rows"]:
            if row["what"] == what:
                return row["value"]
        raise KeyError(what)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def need(self, seconds: float) -> None:
        if self.left() < seconds:
            raise NoTimeError(f"{seconds:.0f} s wanted, {max(0, self.left()):.0f} left")

    def save(self) -> None:
        scratch = self.out.with_name(self.out.name + ".part")
        scratch.write_text(json.dumps(self.found, indent=1), "utf-8")
        os.replace(scratch, self.out)

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, way: Callable[[], Any], rounds: int = 3, first: Callable[[], Any] | None = None) -> list[float]:
        """Seconds of each round: fewer rounds if time runs out. What one has made is let go of before the next."""
        found: list[float] = []
        for _ in range(rounds):
            if first is not None:
                first()
            self.sync()
            start = time.perf_counter()
            made = way()
            self.sync()
            found.append(time.perf_counter() - start)
            del made
            if self.left() < 2 * found[-1]:
                break
        return found

    def rate(self, what: str, way: Callable[[], Any], size: int, wanted: str = "", **options: Any) -> float:
        """Note GB/s of the fastest round, which noise has slowed least; the JSON has all of them."""
        samples = [size / seconds / _GIGA for seconds in self.seconds(way, **options)]
        self.note(what, max(samples), "GB/s", wanted, samples)
        return max(samples)

    def peak(self, way: Callable[[], Any]) -> tuple[Any, int | None]:
        """What ``way`` makes, and bytes that were allocated on the GPU at most, beside what was there before."""
        gc.collect()
        if not self.on_gpu:
            return way(), None
        self.sync()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        made = way()
        self.sync()
        return made, torch.cuda.max_memory_allocated(self.device) - before

    # Files

    def aibit(self, scheme: str) -> Path:
        """The model in a scheme."""
        path = self.work / f"{self.model}-{scheme}.aibit"
        if not path.exists():
            convert(models.checkpoint(self.model, self.work), path, scheme=scheme)
        return path

    def saved(self, scheme: str) -> Path:
        """The same bytes as a directory that transformers and bitsandbytes load."""
        path = self.work / f"{self.model}-{scheme}-saved"
        if not (path / "config.json").is_file():
            models.remove(path)
            with File(self.aibit(scheme)) as file:
                export(file, "huggingface", path)
        return path

    def large(self) -> Path:
        """An int8 file of about ``self.bytes``: some twenty matrices, all of the same random codes."""
        path = self.work / f"large-{self.bytes}.aibit"
        if not path.exists():
            models.need(self.work, self.bytes)
            writer.write(path, {writer.Tensor(f"layers.{i}.weight", codes.shape, "f16", make("int8")):
                                {"codes": codes, "row_absmax": np.ones(len(codes), np.float32)}
                                for i, codes in enumerate(self._matrices())})  # fmt: skip
        return path

    def large_safetensors(self) -> Path:
        """As many bytes in as many tensors as a safetensors file."""
        folder = self.work / f"large-{self.bytes}-safetensors"
        path = folder / "model.safetensors"
        if not path.exists():
            models.need(self.work, self.bytes)
            folder.mkdir(exist_ok=True)
            codes = self._matrices()
            shape = len(codes[0]), _COLUMNS // 2  # float16: two bytes each
            entries = [models.Entry(f"layers.{i}.weight", "F16", shape) for i in range(len(codes))]
            models.write_safetensors(path, entries, lambda entry: [codes[0]])
        return path

    def _matrices(self) -> list[np.ndarray]:
        shape = max(1, self.bytes // _MATRICES // _COLUMNS), _COLUMNS
        return [np.random.default_rng(0).integers(-127, 128, shape, np.int8)] * _MATRICES


def pretrained(run: Run, path: Path, **options: Any) -> Any:
    """A model as transformers loads it onto the device."""
    from transformers import AutoModelForCausalLM

    where = {"": run.device.index if run.on_gpu else "cpu"}
    with contextlib.redirect_stdout(sys.stderr):
        return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, device_map=where, **options).eval()


def quantized(run: Run, scheme: str) -> Any:
    """The checkpoint, quantized by bitsandbytes on the device while it is loaded."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if scheme == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    config = BitsAndBytesConfig(**options)
    return pretrained(run, models.checkpoint(run.model, run.work), dtype=torch.float16, quantization_config=config)


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


def everything(file: File) -> Layout:
    return Layout.of([plane for name in file for plane in file.info(name).planes], file.data)


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
            run.need(2 * size / _GIGA / min(rates[name] or [2]) if run.on_gpu else 1)
            stayed.append(cold.drop(path) or 0.0)
            rates[name] += [size / seconds / _GIGA for seconds in run.seconds(way, 1)]
    for name, samples in rates.items():
        run.note(name, max(samples), "GB/s", "", samples)
    base, ours = (rates[name] for name in list(ways)[:2])
    run.note("aibit, cold, of the direct stream, round by round",
             statistics.median(a / b for a, b in zip(ours, base, strict=True)), "", ">= 0.9")  # fmt: skip
    run.note("largest share of pages that could not be dropped", max(stayed))
    for name, way in others(run).items():
        run.need(2 * size / _GIGA if run.on_gpu else 1)
        run.rate(f"{name}, cold", way, size, rounds=1, first=lambda: cold.drop(run.large_safetensors()))


def direct(path: Path) -> None:
    """The file, front to back, around the page cache."""
    with File(path) as file:
        source, memory = Source(file.storage), np.frombuffer(torch.empty(5 << 20, dtype=torch.uint8).numpy(), np.uint8)
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


def decode(run: Run) -> None:
    """Tokens a second, greedily, with a cache, after a prompt of 128; batch 1 and 8."""
    checkpoint = models.checkpoint(run.model, run.work)
    ways: dict[str, Callable[[], Any]] = {
        "transformers bf16": lambda: pretrained(run, checkpoint, dtype=torch.bfloat16),
        "aibit int8, LLM.int8": lambda: load_model(run.aibit("int8"), run.device),
        "aibit int8, weight only": lambda: load_model(run.aibit("int8"), run.device, weight_only=True),
        "aibit nf4": lambda: load_model(run.aibit("nf4"), run.device),
    }
    rates: dict[str, float] = {}
    for name, way in ways.items():
        try:
            model = way()
            for batch in (1, 8):
                run.need(5)
                steps(run, model, batch, 3)
                samples = [batch / seconds for seconds in steps(run, model, batch, _TOKENS if run.on_gpu else 3)]
                rates[f"{name}, batch {batch}"] = statistics.median(samples)
                run.note(f"{name}, batch {batch}", statistics.median(samples), "tokens/s", "", samples)
            del model
        except NoTimeError:
            raise
        except Exception as error:  # of one way; the others go on
            run.found["failed"][f"decode: {name}"] = reason(run, error)
        gc.collect()
    with contextlib.suppress(KeyError):
        ratio = rates["aibit int8, weight only, batch 1"] / rates["transformers bf16, batch 1"]
        run.note("weight only, of bf16, batch 1", ratio, "", ">= 1.5")


def steps(run: Run, model: Any, batch: int, tokens: int) -> list[float]:
    """Seconds of each token after the first."""
    ids = torch.arange(1, _PROMPT + 1, device=run.device).expand(batch, -1)
    seconds, cache = [], None
    with torch.inference_mode():
        for _ in range(tokens + 1):
            run.sync()
            start = time.perf_counter()
            result = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = result.logits[:, -1:].argmax(-1), result.past_key_values
            run.sync()
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


SECTIONS: dict[str, Callable[[Run], None]] = {
    "correct": correct, "link": link, "warm": warm, "load": load, "decode": decode, "cold": disk,
}  # fmt: skip


def reason(run: Run, error: BaseException) -> str:
    """An error in a line, without the paths of this machine."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return text.replace(str(run.work), "WORK").replace(str(Path(__file__).resolve().parents[2]), ".")


def sections(run: Run, names: list[str]) -> Iterator[str]:
    """Run each section, whatever the others come to; yields the name of each that is over."""
    for run.section in names:
        start = time.monotonic()
        try:
            run.need(5)
            SECTIONS[run.section](run)
        except NoTimeError as over:
            run.found["left_out"][run.section] = f"no time: {over}"
        except Exception as error:  # is part of the result
            run.found["failed"][run.section] = reason(run, error)
        run.found["seconds"][run.section] = round(time.monotonic() - start, 1)
        gc.collect()
        if run.on_gpu:
            with contextlib.suppress(RuntimeError):  # after an error on the device, there is nothing to give back
                torch.cuda.empty_cache()
        run.save()
        yield run.section


def table(found: dict[str, Any]) -> str:
    """Everything that was found, as a Markdown table and lines below it."""
    lines = ["| section | what | value | unit | wanted | met |", "|---|---|--:|---|---|---|"]
    for row in found["rows"]:
        met = {True: "yes", False: "NO", None: ""}[row.get("met")]
        cells = [row["section"], row["what"], number(row["value"]), row["unit"], row.get("wanted", ""), met]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"- {title}: {what}: {why}" for title, key in (("FAILED", "failed"), ("left out", "left_out"))
              for what, why in found[key].items()]  # fmt: skip
    return "\n".join([*lines, f"- seconds: {found['seconds']}"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=models.SHAPES, help="default: 1.1b; on a CPU tiny")
    parser.add_argument("--gigabytes", type=float, help="of the file for rates (default: 8; on a CPU 0.008)")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all sections (default: 540)")
    work = Path(tempfile.gettempdir()) / "bench-gpu"
    parser.add_argument("--work", type=Path, default=work, help="where files are made")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON (default: gpu.json)")
    given = parser.parse_args()
    if unknown := [name for name in given.section if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"this torch ({torch.__version__}) sees no CUDA device; --device cpu tries the script itself")
    return given


def main() -> int:
    given = arguments()
    faulthandler.dump_traceback_later(given.budget + 50, exit=True)  # a device that hangs must not take the JSON along
    given.work.mkdir(parents=True, exist_ok=True)
    if given.device == "cpu":
        arena.LINKS["cpu"] = arena.Memory  # as a GPU's link, without the bus
    run = Run(given)
    for name in sections(run, given.section or list(SECTIONS)):
        print(f"{name}: {run.found['seconds'][name]} s", file=sys.stderr, flush=True)
    print(table(run.found))
    return 1 if run.found["failed"] or not all(row.get("met", True) for row in run.found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
