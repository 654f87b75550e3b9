"""The rows ``load`` and ``cold``: from a file to a model that has run once, warm and cold, beside other loaders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import foreign, loaders, models, probe
from tools.bench.figures import Figure, of_runs
from tools.bench.pairing import Bench

_MIB = 1 << 20
_WHOLE = 0.9  # of a file: the system reads ahead too, and what it has brought in `read_ahead` passes over
_ONCE = "transformers, GGUF q8_0"  # decodes every tensor in numpy: minutes for a large model
_FORWARD, _BOTH, _GAINED = ", first forward", ", load and first forward", ", gained by load and forward"
_OF_TENSORS = {  # which have no forward
    _FORWARD: ", a look at every page",
    _BOTH: ", load and a look at every page",
    _GAINED: ", gained by load and look",
}


@dataclass(frozen=True)
class _Way:
    label: str
    loader: str
    path: Path
    tiny: Path


def _eight_bit(bench: Bench) -> list[_Way]:
    saved = bench.saved, bench.tiny_saved
    states = [foreign.state_dict(folder, folder.with_name(f"{folder.name}-pt")) for folder in saved]
    ggufs = [
        foreign.gguf_q8_0(models.SHAPES[model], bench.work / f"{model}-q8_0.gguf") for model in (bench.model, "tiny")
    ]
    return [
        _Way("aibit", "aibit", bench.file, bench.tiny_file),
        _Way("transformers, saved in 8 bits", "saved", bench.saved, bench.tiny_saved),
        _Way("torch.load, into 8 bits", "state dict", *states),
        _Way("transformers, quantizing", "quantize", bench.source, bench.tiny),
        _Way("transformers, fp16", "fp16", bench.source, bench.tiny),
        _Way(_ONCE, "gguf", *ggufs),
    ]


def _four_bit(bench: Bench) -> list[_Way]:
    return [
        _Way("aibit nf4", "aibit", bench.converted("nf4"), bench.tiny_converted("nf4")),
        _Way("aibit nf4-cpu", "aibit", bench.converted("nf4-cpu"), bench.tiny_converted("nf4-cpu")),
        _Way("transformers, saved in nf4", "saved", bench.saved_4bit, bench.tiny_saved_4bit),
        _Way("transformers, quantizing to nf4", "quantize to nf4", bench.source, bench.tiny),
    ]


def _tensors(bench: Bench) -> list[_Way]:
    ways = [
        _Way("tensors alone, aibit", "planes", bench.file, bench.tiny_file),
        _Way("tensors alone, safetensors", "safetensors", bench.saved, bench.tiny_saved),
        _Way("tensors alone, fastsafetensors", "fastsafetensors", bench.saved, bench.tiny_saved),
    ]
    for way in ways:
        if not loaders.installed(way.loader):
            bench.facts[way.label] = "not installed, not measured"
    return [way for way in ways if loaders.installed(way.loader)]


def load(bench: Bench) -> list[Figure]:
    families = [_eight_bit(bench), _four_bit(bench), tensors := _tensors(bench)]
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        way.label: ("load", {"way": way.loader, "path": str(way.path), "tiny": str(way.tiny)})
        for family in families
        for way in family
    }
    found = bench.paired(ways, once=(_ONCE,))
    # The thread that looks at memory would show in the times: it gets processes of its own, one each.
    watching = {label: (job, {**arguments, "watch": True}) for label, (job, arguments) in ways.items()}
    watched = bench.paired(watching, runs=1)
    for runs in (*found.values(), *watched.values()):
        for run in runs:
            run["grown"] = run["after"] - run["before"]
            run["grown_forward"] = run["after_forward"] - run["before"]
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    figures: list[Figure] = []
    for samples, key, unit, what, divisor in (
        (found, "seconds", "s", "", 1),
        (found, "forward", "s", _FORWARD, 1),
        (found, "both", "s", _BOTH, 1),
        (found, "before", "MiB", ", anonymous after imports", _MIB),
        (found, "grown", "MiB", ", anonymous gained by the load", _MIB),
        (found, "grown_forward", "MiB", _GAINED, _MIB),
        (watched, "highest_anonymous", "MiB", ", anonymous when most was resident", _MIB),
        (watched, "highest_file", "MiB", ", of files when most was resident", _MIB),
        (watched, "highest", "MiB", ", most that was resident", _MIB),
    ):
        for family in families:
            runs = {way.label: samples[way.label] for way in family}
            named = _OF_TENSORS.get(what, what) if family is tensors else what
            figures += of_runs(runs, key, unit, named, divisor, shown)
    return figures


def cold(bench: Bench) -> list[Figure]:
    loads: dict[str, tuple[str, dict[str, Any]]] = {
        label: ("cold", {"way": way, "path": str(path), "tiny": str(tiny)})
        for label, way, path, tiny in (
            ("aibit", "aibit", bench.file, bench.tiny_file),
            ("aibit, prefetch", "aibit, prefetch", bench.file, bench.tiny_file),
            ("transformers, saved in 8 bits", "saved", bench.saved, bench.tiny_saved),
        )
    }
    streams: dict[str, tuple[str, dict[str, Any]]] = {
        label: ("stream", {"way": way, "path": str(bench.file)})
        for label, way in (("direct reads of 4 MiB", "direct"), ("prefetch.read_ahead", "read_ahead"))
    }
    found = bench.paired({**loads, **streams}, warm=False)
    for label, runs in found.items():
        left = [run["left"] for run in runs]
        bench.facts[f"{label}: share of the pages that stayed, at most"] = (
            "the file system does not say" if None in left else max(left)
        )
    shown = {label: bench.shown(probe.command(*way)) for label, way in {**loads, **streams}.items()}
    loading = {label: found[label] for label in loads}
    figures = of_runs(loading, "seconds", "s", _BOTH, 1, shown)
    figures += of_runs(loading, "load", "s", ", load", 1, shown)
    reading = {label: found[label] for label in streams}
    for label, runs in reading.items():
        if any(run["seconds"] is None for run in runs):
            bench.facts[label] = "the file system has none, not measured"
        elif (share := min(run["read"] / run["bytes"] for run in runs)) < _WHOLE:
            bench.facts[f"{label}: share of the file that was read"] = share
        for run in runs:
            run["rate"] = run["bytes"] / run["seconds"] if run["seconds"] else None
    measured = {label: runs for label, runs in reading.items() if all(run["rate"] for run in runs)}
    return figures + of_runs(measured, "rate", "GB/s", "", 1e9, shown)


ROWS = {"load": load, "cold": cold}
ABOUT = {
    "load": "a model that can run, and its first forward, beside other loaders; tensors alone",
    "cold": "the same from files that are not in memory, and reading them",
}
