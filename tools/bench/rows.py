"""The rows of the table: one function each, named in ``ROWS``. A row pairs measurements and says what was measured."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tools.bench import format_rows, generation, load_rows, models, packed_rows, probe
from tools.bench.figures import Figure, of_runs
from tools.bench.pairing import Bench
from tools.bench.source_rows import sources

_MIB = 1 << 20
_COUNTS = (1_000, 5_000, 20_000, 50_000)  # tensors of the files that `open` opens
_ROUNDS = 10  # inside one process, where a job alternates by itself


def encode(bench: Bench) -> list[Figure]:
    shape = models.SHAPES[bench.model]
    arguments = {"shape": [shape.intermediate_size, shape.hidden_size], "rounds": _ROUNDS}
    runs = [probe.run("encode", **arguments) for _ in range(bench.runs)]
    bench.facts["same bytes as bitsandbytes"] = all(run["same"] for run in runs)
    return _rates(runs, "bitsandbytes", bench.shown(probe.command("encode", arguments)))


def verify(bench: Bench) -> list[Figure]:
    arguments = {"path": str(bench.file), "rounds": max(3, _ROUNDS // 2)}
    models.read_through(bench.file)
    runs = [probe.run("verify", **arguments) for _ in range(bench.runs)]
    command = bench.shown(probe.command("verify", arguments))
    return [
        *_rates(runs, "xxh3_64, every core", command, ["verify"]),
        *_rates(runs, "xxh3_64, one thread", command, ["verify, one thread"]),
    ]


def _rates(runs: list[probe.Result], against: str, command: str, ways: Iterable[str] = ()) -> list[Figure]:
    """GB/s from the seconds of ways that alternate within each process: some, or all of them."""

    def rates(label: str) -> list[float]:
        return [run["bytes"] / seconds / 1e9 for run in runs for seconds in run["seconds"][label]]

    base = Figure(against, "GB/s", rates(against), None, command)
    others = ways or [label for label in runs[0]["seconds"] if label != against]
    return [base, *(Figure(label, "GB/s", rates(label), base, command) for label in others)]


def schemes(bench: Bench) -> list[Figure]:
    from aibit_format.dtypes import DTYPES
    from aibit_format.schemes import BUILTIN

    shape = models.SHAPES[bench.model]
    figures: list[Figure] = []
    for scheme in (name for name in BUILTIN if name not in DTYPES):
        arguments = {"scheme": scheme, "shape": [shape.intermediate_size, shape.hidden_size], "rounds": 5}
        runs = [probe.run("codec", **arguments) for _ in range(bench.runs)]
        command = bench.shown(probe.command("codec", arguments))
        samples = {
            way: [run["bytes"] / seconds / 1e9 for run in runs for seconds in run["seconds"][way]]
            for way in runs[0]["seconds"]
        }
        for what in ("encode", "decode"):
            other = next((way for way in samples if way.startswith(f"{what}, ")), None)
            base = Figure(f"{scheme} {other}", "GB/s", samples[other], None, command) if other else None
            if what in samples:
                figures.append(Figure(f"{scheme} {what}", "GB/s", samples[what], base, command))
            figures += [base] if base else []
        if runs[0]["same"] is not None:
            bench.facts[f"{scheme}: the same bytes and values as the library's"] = all(run["same"] for run in runs)
    return figures


def convert(bench: Bench) -> list[Figure]:
    common = {"source": str(bench.source), "tiny": str(bench.tiny)}
    target = bench.work / "converted.aibit"
    models.need(bench.work, models.size_of(bench.source))
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "aibit.convert": ("convert_aibit", {**common, "target": str(target)}),
        "transformers load_in_8bit": ("convert_transformers", common),
    }
    found = bench.paired(ways)
    bench.facts["same bytes with 1 and 2 jobs"] = bench.same_with_jobs(**common)
    models.remove(target)
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    return [
        *of_runs(found, "seconds", "s", "", 1, shown),
        *of_runs(found, "before", "MiB", ", anonymous after imports", _MIB, shown),
        *of_runs(found, "peak", "MiB", ", anonymous at its highest", _MIB, shown),
    ]


def throughput(bench: Bench) -> list[Figure]:
    if not bench.memory.is_dir():
        bench.facts["no file system in memory"] = "not measured"
        return []
    with tempfile.TemporaryDirectory(prefix="aibit-", dir=bench.memory) as folder:
        sources = {name: models.checkpoint(model, Path(folder)) for name, model in
                   (("source", bench.model), ("tiny", "tiny"))}  # fmt: skip
        models.need(Path(folder), models.size_of(sources["source"]))
        figures: list[Figure] = []
        for scheme in ("int8", "nf4"):
            arguments = {name: str(path) for name, path in sources.items()} | {
                "target": f"{folder}/out.aibit", "scheme": scheme, "rounds": bench.runs,
            }  # fmt: skip
            run = probe.run("throughput", **arguments)
            command = bench.shown(probe.command("throughput", arguments)).replace(folder, "MEMORY")
            gigabytes = run["bytes"] / 1e9
            for way, found in run["seconds"].items():
                figures.append(Figure(way, "GB/s", [gigabytes / seconds for seconds in found], None, command))
            for way, found in run["cores"].items():
                of_all = [seconds / gigabytes for seconds in found]
                figures.append(Figure(f"{way}, of all cores", "s/GB", of_all, None, command))
    bench.facts["the file system in memory"] = _mounted(bench.memory)
    return figures


def _mounted(folder: Path) -> str:
    """Type and options of the file system that a folder lies in, as Linux lists them."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        lines = [line.split() for line in mounts]
    found = max((line for line in lines if folder.is_relative_to(line[1])), key=lambda line: len(line[1]))
    return f"{found[2]} ({found[3]})"


def shared(bench: Bench) -> list[Figure]:
    figures: list[Figure] = []
    for label, way, path, weights in (
        ("aibit", "aibit", bench.file, bench.file),
        ("transformers, saved in 8 bits", "saved", bench.saved, bench.saved / "model.safetensors"),
    ):
        arguments = {"way": way, "path": str(path), "mapped": str(weights)}
        command = bench.shown(probe.command("hold", arguments))
        found = [result for _ in range(bench.runs) for result in _two_at_once(arguments)]
        for part, fields in (
            ("mapping", ("Rss", "Pss", "Shared_Clean", "Private_Clean", "Private_Dirty")),
            ("process", ("Pss", "Private_Dirty")),
        ):
            figures += [
                Figure(f"{label}, {part} {name}", "MiB", [run[part][name] / _MIB for run in found], None, command)
                for name in fields
            ]
    return figures


def _two_at_once(arguments: dict[str, Any]) -> list[probe.Result]:
    """What two processes see of their memory while both hold the model."""
    with ExitStack() as stack:
        children = [stack.enter_context(probe.started("hold", **arguments)) for _ in range(2)]
        for child in children:
            child.result()
        found = []
        for child in children:
            child.go_on()
            found.append(child.result())
        return found


def open_file(bench: Bench) -> list[Figure]:
    paths = [models.many_tensors(count, bench.work) for count in _COUNTS]
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        path.name: ("open", {"path": str(path), "rounds": 20}) for path in paths
    }
    found = bench.paired(ways)
    return [
        Figure(
            f"{runs[0]['tensors']:,} tensors, {runs[0]['planes']:,} planes",
            "ms",
            [1e3 * run["seconds"] for run in runs],
            None,
            bench.shown(probe.command(*ways[name])),
        )
        for name, runs in found.items()
    ]


def start(bench: Bench) -> list[Figure]:
    ways = {
        "python, nothing imported": ["-c", "pass"],
        "import aibit_format": ["-c", "import aibit_format"],
        "import aibit_format, and its reader": ["-c", "from aibit_format import open"],
        "import numpy": ["-c", "import numpy"],
        "aibit inspect": ["-m", "aibit_format", "inspect", str(bench.file)],
    }
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    for i in range(5 * bench.runs + 1):
        for label, arguments in ways.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, env=probe.environment(), stdout=subprocess.DEVNULL)
            if i:  # the first round fills the page cache
                seconds[label].append(time.perf_counter() - begin)
    commands = {label: bench.shown([sys.executable, *arguments]) for label, arguments in ways.items()}
    bare, *others = (Figure(label, "s", samples, None, commands[label]) for label, samples in seconds.items())
    beyond = [a - b for a, b in zip(seconds["aibit inspect"], bare.samples, strict=True)]
    return [
        bare,
        *(Figure(other.label, "s", other.samples, bare, other.command) for other in others),
        Figure("aibit inspect, less bare python", "s", beyond, None, commands["aibit inspect"]),
    ]


ROWS: dict[str, Callable[[Bench], list[Figure]]] = {
    "encode": encode,
    "schemes": schemes,
    "convert": convert,
    "throughput": throughput,
    "sources": sources,
    **format_rows.ROWS,
    **packed_rows.ROWS,
    **load_rows.ROWS,
    "shared": shared,
    "open": open_file,
    "start": start,
    "verify": verify,
    **generation.ROWS,
}
ABOUT = {
    "encode": "int8 encoding of one float16 tensor, against bitsandbytes' own function",
    "schemes": "every scheme on one float16 tensor: GB/s of its float16 bytes, encoding and decoding",
    "convert": "a float16 checkpoint to an int8 file, against quantizing it in memory",
    "throughput": "converting from memory to memory, to int8 and nf4: GB/s of float16 weights, and seconds of cores",
    "sources": "every kind of source to an .aibit file",
    **format_rows.ABOUT,
    **packed_rows.ABOUT,
    **load_rows.ABOUT,
    "shared": "memory of two processes that hold the same model",
    "open": "opening and checking files of many tensors",
    "start": "whole processes: imports, and aibit inspect",
    "verify": "checking every byte of a file, against hashing its pages alone, with every core and with one",
    **generation.ABOUT,
}
