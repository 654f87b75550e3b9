"""The row ``sources``: one model, as every kind of source has it, to an ``.aibit`` file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import foreign, models, probe
from tools.bench.figures import Figure, of_runs
from tools.bench.pairing import Bench

_MIB = 1 << 20


@dataclass(frozen=True)
class _Way:
    """A conversion: its label, what makes the source, and the scheme asked for; by default what is quantized is kept.

    ``make`` is called with the model's name and with "tiny", which a process warms up with.
    """

    label: str
    make: Callable[[Bench, str], Path]
    scheme: str | None = None


def _safetensors(bench: Bench, model: str) -> Path:
    return models.checkpoint(model, bench.work)


def _pytorch_bin(bench: Bench, model: str) -> Path:
    return foreign.pytorch_bin(models.checkpoint(model, bench.work), bench.work / f"{model}-pytorch-bin")


def _eight_bit(bench: Bench, model: str) -> Path:
    return bench.saved if model == bench.model else bench.tiny_saved


def _four_bit(bench: Bench, model: str) -> Path:
    return bench.saved_4bit if model == bench.model else bench.tiny_saved_4bit


def _words(method: str) -> Callable[[Bench, str], Path]:
    return lambda bench, model: foreign.four_bit_words(method, models.SHAPES[model], bench.work / f"{model}-{method}")


def _gguf(bench: Bench, model: str) -> Path:
    return foreign.gguf_q8_0(models.SHAPES[model], bench.work / f"{model}-q8_0.gguf")


def _aibit(bench: Bench, model: str) -> Path:
    return bench.file if model == bench.model else bench.tiny_file


def _archive(bench: Bench, model: str) -> Path:
    return foreign.archive(_eight_bit(bench, model), bench.work / f"{model}-int8.zip")


_WAYS = (
    _Way("float16 safetensors to int8", _safetensors, "int8"),
    _Way("float16 safetensors to nf4", _safetensors, "nf4"),
    _Way("float16 safetensors to int4-group", _safetensors, "int4-group"),
    _Way("pytorch_model.bin to int8", _pytorch_bin, "int8"),
    _Way("bitsandbytes 8 bit, kept", _eight_bit),
    _Way("bitsandbytes nf4, kept", _four_bit),
    _Way("GPTQ, kept", _words("gptq")),
    _Way("AWQ, kept", _words("awq")),
    _Way("GGUF q8_0, kept", _gguf),
    _Way(".aibit int8 to nf4", _aibit, "nf4"),
    _Way(".aibit int8, kept", _aibit),
    _Way("old ZIP archive of int8, kept", _archive),
)


def sources(bench: Bench) -> list[Figure]:
    target = bench.work / "converted.aibit"
    ways: dict[str, tuple[str, dict[str, Any]]] = {}
    for way in _WAYS:
        source, tiny = way.make(bench, bench.model), way.make(bench, "tiny")
        arguments = {"source": str(source), "tiny": str(tiny), "target": str(target), "scheme": way.scheme}
        ways[way.label] = "convert_aibit", arguments
    models.need(bench.work, 2 * models.size_of(bench.source))
    found = bench.paired(ways)
    models.remove(target)
    for label, (_, arguments) in ways.items():
        size = models.size_of(Path(arguments["source"]))
        for run in found[label]:
            run["rate"], run["gained"] = size / run["seconds"], run["peak"] - run["before"]
        bench.facts[f"{label}: same bytes with 1 and 2 jobs"] = bench.same_with_jobs(**arguments)
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    return [
        *of_runs(found, "seconds", "s", "", 1, shown),
        *of_runs(found, "rate", "GB/s", ", of the source's bytes", 1e9, shown),
        *of_runs(found, "gained", "MiB", ", anonymous gained at its highest", _MIB, shown),
    ]
