"""The row ``formats``: one model in every format that is read, from the checkpoint to its tokens, beside others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tools.bench import integers, llama, models, probe
from tools.bench.figures import Figure
from tools.bench.packed import beyond
from tools.bench.pairing import Bench

_PROMPT, _TOKENS = 128, 16
_ROUNDED = "int8"  # what inputs are rounded to where llama.cpp does so
_SMALL = "small"  # the model that processes warm up with
_COMPARED = 1 << 30  # bytes in float16 of the largest model that is compared with itself in float64, eight times that
_BF16, _LLAMA = "bf16, transformers", ", llama.cpp"
_TEXTS = [
    [1, 17, 300, 42, 7, 9, 511, 23],
    [1, 5, 88, 1000, 3, 64, 250, 12, 700, 31],
]  # ids, which all vocabularies have
_TOKENIZER = probe.ROOT / "fixtures" / "models" / "tiny-llama"  # llama.cpp's server opens no file without one

_Make = Callable[[Bench, str], Path]


def _exported(scheme: str, form: str | None) -> _Make:
    """The model in a scheme, by the package's own encoder, and exported: in a form of directory, or as GGUF."""

    def make(bench: Bench, model: str) -> Path:
        import aibit_format as aibit

        between = bench.work / f"{model}-between.aibit"
        name = f"{model}-{form}-{scheme}".translate(str.maketrans(",=:", "---"))
        path = bench.work / (name if form else f"{model}-made-{scheme.removeprefix('gguf:')}.gguf")
        models.remove(path)
        models.need(bench.work, models.SHAPES[model].bytes)
        aibit.convert(_source(bench, model), between, scheme, overwrite=True)
        if form:
            aibit.export(between, "huggingface", path, type=form)
        else:
            aibit.export(between, "gguf", path, overwrite=True)  # of the Modelfile beside it
        models.remove(between)
        return path

    return make


def _source(bench: Bench, model: str) -> Path:
    """The float16 checkpoint, with a tokenizer."""
    folder = models.checkpoint(model, bench.work)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / name, folder / name)
    return folder


def _random(write: Callable[[models.Shape, Path], Path], name: str) -> _Make:
    """The model of random codes, written as a library writes it."""
    return lambda bench, model: write(models.SHAPES[model], bench.work / f"{model}-{name}")


def _blocks(kind: str) -> _Make:
    """The model in random blocks of a type that only llama.cpp encodes."""

    def make(bench: Bench, model: str) -> Path:
        path = bench.work / f"{model}-random-{kind}.gguf"
        models.remove(path)  # the template is the package's
        return integers.gguf_blocks(kind, FORMATS["GGUF q8_0"](bench, model), path)

    return make


FORMATS: dict[str, _Make] = {
    "bitsandbytes int8": _exported("int8", "bitsandbytes"),
    "bitsandbytes nf4": _exported("nf4", "bitsandbytes"),
    "fp8, blocks of 128 by 128": _exported("fp8-block", "fp8"),
    "mxfp4, compressed-tensors": _exported("mxfp4", "compressed-tensors"),
    "nvfp4, compressed-tensors": _exported("nvfp4,reciprocal=1", "compressed-tensors"),
    "int4 in groups of 128, compressed-tensors": _exported("int-group,bits=4,group=128", "compressed-tensors"),
    "int8 of rows, compressed-tensors": _exported("int-group,bits=8,group=row", "compressed-tensors"),
    "GPTQ, 4 bits": _exported("int4-group", "gptq"),
    "AWQ, 4 bits": _exported("int4-group", "awq"),
    "MLX, 4 bits": _exported("int-group,bits=4,group=64,zero=bias", "mlx"),
    "HQQ, 4 bits": _random(integers.hqq, "hqq"),
    "torchao int8": _random(integers.torchao, "torchao"),
    "BitNet": _exported("ternary", "bitnet"),
    **{f"GGUF {kind}": _exported(f"gguf:{kind}", None) for kind in ("q4_0", "q4_1", "q8_0")},
    **{f"GGUF {kind}": _blocks(kind) for kind in ("q4_k", "q6_k")},
}


def formats(bench: Bench) -> list[Figure]:
    common: dict[str, Any] = {"prompt": _PROMPT, "tokens": _TOKENS}
    plain = {"way": "bf16", "source": str(bench.source), "tiny": str(models.checkpoint(_SMALL, bench.work)), **common}
    ways: dict[str, tuple[str, dict[str, Any]]] = {_BF16: ("follow", plain)}
    compared = models.SHAPES[bench.model].bytes <= _COMPARED
    sizes: dict[str, int] = {}
    made = {label: make for label, make in FORMATS.items() if bench.formats.search(label)}
    for label, make in made.items():
        source, tiny = make(bench, bench.model), make(bench, _SMALL)
        sizes[label] = models.size_of(source)
        ways[label] = "follow", {
            "way": "weight only, bf16", "source": str(source), "tiny": str(tiny), "rounding": _ROUNDED,
            "texts": _TEXTS if compared else None, "target": str(bench.work / "followed.aibit"), **common,
        }  # fmt: skip
        if source.suffix == ".gguf" and llama.installed():
            ways[label + _LLAMA] = "llama", {"path": str(source), "texts": _TEXTS, **common}
    if not llama.installed():
        bench.facts["llama.cpp"] = llama.MISSING
    found = bench.paired(ways)
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    for label, size in sizes.items():
        for run in found[label]:
            run["rate"] = size / run["convert"]
        bench.facts[f"{label}: MB of the source"] = round(size / 1e6, 1)
    models.remove(bench.work / "followed.aibit")
    if compared:
        _errors(bench, made, found)
    else:
        bench.facts["largest difference from float64"] = "not measured, the model is too large; say --model 160m"
    figures = []
    for key, unit, what, divisor in (
        ("rate", "GB/s", "converted, of the source's bytes", 1e9),
        ("load", "s", "load", 1),
        ("first", "s", f"prompt of {_PROMPT}", 1),
        ("token", "ms", "token", 1e-3),
        ("rounded", "ms", f"token, inputs rounded to {_ROUNDED}", 1e-3),
    ):
        base = None if key == "rate" else _figure(_BF16, found, key if key != "rounded" else "token", unit, "", divisor)
        for label in found:
            if key in found[label][0]:
                against = None if label == _BF16 else base
                figures.append(_figure(label, found, key, unit, what, divisor, against, shown[label]))
    return figures


def _figure(
    label: str, found: dict[str, list[probe.Result]], key: str, unit: str, what: str, divisor: float,
    against: Figure | None = None, command: str = "",
) -> Figure:  # fmt: skip
    name = f"{label}, {what}" if what else label
    return Figure(name, unit, [run[key] / divisor for run in found[label]], against, command, what)


def _errors(bench: Bench, labels: Iterable[str], found: dict[str, list[probe.Result]]) -> None:
    """Put into the facts how far each way is from float64."""
    for label in labels:
        made = found[label][0]["differences"]
        if others := found.get(label + _LLAMA):
            made["largest"]["llama.cpp"] = beyond(made["reference"], others[0]["after"])
        shown = {way: float(f"{value:.2g}") for way, value in made["largest"].items()}
        bench.facts[f"{label}: largest difference from float64"] = shown


ROWS = {"formats": formats}
ABOUT = {"formats": "every format that is read: converted, loaded, a prompt and tokens, beside bf16 and llama.cpp"}
