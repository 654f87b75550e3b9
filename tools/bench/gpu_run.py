"""A run of ``gpu.py``: its settings, its clock, the files it makes, what it has found."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aibit_format import convert
from aibit_format.file import writer
from aibit_format.file.reader import File
from aibit_format.formats.exports import export
from aibit_format.schemes import make
from tools import ROOT
from tools.bench import models
from tools.bench.machine import machine

GIGA = 1e9
_MATRICES, _COLUMNS = 20, 8192  # of the large file


class NoTimeError(Exception):
    """There is no time left for what comes next."""


class Run:
    """The settings of a run, its files, and what it has found."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.work, self.out = given, given.work.resolve(), given.out
        self.device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
        self.on_gpu = self.device.type == "cuda"
        self.model: str = given.model or ("1.1b" if self.on_gpu else "tiny")
        self.bytes = int((given.gigabytes or (8 if self.on_gpu else 0.008)) * GIGA)
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

    def reason(self, error: BaseException) -> str:
        """An error in a line, without the paths of this machine."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return text.replace(str(self.work), "WORK").replace(str(ROOT), ".")

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
        samples = [size / seconds / GIGA for seconds in self.seconds(way, **options)]
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

    def aibit(self, scheme: str, model: str | None = None) -> Path:
        """A model, or the one of this run, in a scheme."""
        model = model or self.model
        path = self.work / f"{model}-{scheme}.aibit"
        if not path.exists():
            convert(models.checkpoint(model, self.work), path, scheme=scheme)
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
