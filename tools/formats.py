"""Writes ``docs/formats.md`` from the registries: ``python -m tools.formats [--check]``.

What a source makes of a checkpoint is found by opening one: the small directories that fuzzing begins with.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from aibit_format.convert.presets import PRESETS
from aibit_format.dtypes import DTYPES
from aibit_format.formats import exports, sources
from aibit_format.formats.foreign import FOREIGN
from aibit_format.formats.gguf.architectures import ARCHITECTURES
from aibit_format.formats.huggingface import methods
from aibit_format.formats.huggingface.forms import FORMS, form_class
from aibit_format.formats.sources import open_source
from aibit_format.schemes import BUILTIN, Scheme, capabilities, make
from aibit_format.schemes.ggml import GGML, LAYOUTS
from aibit_format.schemes.ggml_encode import FALLBACKS
from tools import ROOT
from tools.fuzz import quantized_seeds, seeds

PAGE = ROOT / "docs" / "formats.md"
# Of formats that are read: how, and whether they are written.
_READ = (
    (
        "PyTorch checkpoints (`.bin`, `.pt`, `.pth`)",
        "`aibit convert DIRECTORY -o m.aibit`; a pickle is taken apart, and nothing in it is run",
        "no: safetensors hold the same and nothing that runs",
    ),
    (
        "safetensors",
        "`aibit convert DIRECTORY -o m.aibit`, sharded or not, quantized by any method above",
        "`aibit export m.aibit --to safetensors -o DIRECTORY` (values), `--to huggingface` (codes)",
    ),
    ("GGUF", "`aibit convert m.gguf -o m.aibit`, blocks as they are", "`aibit export m.aibit --to gguf -o m.gguf`"),
    ("MLX", "`aibit convert DIRECTORY -o m.aibit`", "`aibit export m.aibit --to huggingface --type mlx -o DIRECTORY`"),
)
# How formats are written that are not read.
_WRITTEN = {
    "ONNX": "`aibit export m.aibit --to onnx -o m.onnx`, of a file with a graph (`aibit graph`)",
    "OpenVINO IR": "OpenVINO loads the ONNX of `--to onnx --decoded` as it is",
    "TensorRT engine": "TensorRT makes its engines of ONNX (`--to onnx --decoded`); not tried here",
}


def page() -> str:
    """Return the page."""
    return "\n".join((
        "# Formats",
        "",
        "What is read, what of it is kept bit for bit, how it runs, and what is written.",
        "",
        "Written by `python -m tools.formats` from the registries; do not edit.",
        "",
        "## Read",
        "",
        "The first kind that a path is decides; a Hugging Face directory is read by the `quant_method` of its config.",
        "Quantized weights are kept as the schemes named, every bit of codes and scales. Of what a checkpoint has of",
        "activations, scales of 8-bit integers in compressed-tensors are kept; the rest is left out, and said",
        "(`source.left_out`). Plain values are kept in any dtype.",
        "",
        *_table(("kind", "what it is"), _kinds()),
        "",
        *_table(("`quant_method`", "checkpoints", "become", "written by `export --to huggingface`"), _methods()),
        "",
        "A method that is not read is refused with the reason:",
        "",
        *_table(("`quant_method`", "why"), ((f"`{name}`", why) for name, why in methods.REFUSED.items())),
        "",
        "## Run",
        "",
        "Every scheme stays packed in a loaded model: on a CPU its planes are the pages of the file, on a GPU they are",
        "copied there as they are. Schemes of other packages need code in torch for that, or are decoded when they are",
        "loaded. Embeddings are looked up by rows.",
        "",
        *_table(("scheme", "on a CPU", "on a GPU"), _schemes()),
        "",
        "## Mixtures",
        "",
        "`--scheme` takes llama.cpp's names for mixtures of GGML's types. The kind of a weight follows from its name;",
        "which rule holds, from its layer, from heads that share keys and values, from the number of experts, and from",
        "whether there is an importance of columns (`aibit_format/convert/presets.py`). The head, and embeddings that",
        "are tied to one, are `q6_k`, and `q8_0` where all weights are. Rows that are no whole blocks of a type get",
        "another:",
        ", ".join(f"`{name}` `{other}`".replace("gguf:", "") for name, other in FALLBACKS.items()) + ".",
        "",
        *_table(("`--scheme`", "most weights", "some of them"), _presets()),
        "",
        "## Written",
        "",
        *_table(("`export --to`", "what it writes"), _exports()),
        "",
        "## Where each format stands",
        "",
        "What people ask about. A path in a format that is not read is refused with the reason that stands here",
        "(`aibit_format/formats/foreign.py`). Machine code is never stored: [why](../spec/RATIONALE.md).",
        "",
        *_table(("format", "read", "written"), _standing()),
        "",
        f"## GGUF, {len(LAYOUTS)} types and {len({each.gguf for each in ARCHITECTURES})} architectures",
        "",
        f"Blocks of all these types are kept, run and written again without a bit changing: {_types()}.",
        "Where llama.cpp has columns in another order than transformers, by less than a block, the order is kept",
        "beside the blocks (version 2 of the scheme), and a layer moves its input.",
        "Models of these architectures become transformers models, and go back; of others the tensors are kept.",
        "",
        *_table(("architecture", "model types of transformers"), _architectures()),
        "",
    ))  # fmt: skip


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _first_line(module: str, verb: str) -> str:
    """Return what the first sentence of a module says after its verb."""
    text = inspect.getdoc(import_module(module)) or ""
    first = text.split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "/")
    return first.removeprefix(f"{verb} ").removesuffix(".").removesuffix(": one line a method, here only")


def _kinds() -> Iterator[tuple[str, str]]:
    for name, target in sources.BUILTIN.items():
        yield f"`{name}`", _first_line(target.partition(":")[0], "Reads")


def _methods() -> Iterator[tuple[str, str, str, str]]:
    found = _kept()
    for target in dict.fromkeys(methods.METHODS.values()):
        names = [name for name, each in methods.METHODS.items() if each == target]
        forms = [form for form in FORMS if set(names) & set(form_class(form).METHODS)]
        label = ", ".join("none" if name is None else f"`{name}`" for name in names)
        kept = ", ".join(f"`{scheme}`" for scheme in found.get(target, ())) or "values, to be quantized"
        written = ", ".join(f"`{form}`" for form in forms) or ("as values" if names == [None] else "as another form")
        yield label, _first_line(target.partition(":")[0], "Reads"), kept, written


def _kept() -> dict[str, list[str]]:
    """Return the schemes that the seeds of the fuzzer become, by the target that reads them."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, files in {**seeds.checkpoints(), **quantized_seeds.checkpoints()}.items():
            inside = Path(folder) / name
            inside.mkdir()
            for file, data in files.items():
                (inside / file).write_bytes(data)
            source = open_source(inside)
            target = f"{type(source).__module__}:{type(source).__name__}"
            names = found.setdefault(target, [])
            names += (tensor.scheme.name for tensor in source.tensors.values() if tensor.scheme is not None)
    return {target: sorted(set(names)) for target, names in found.items()}


def _schemes() -> Iterator[tuple[str, str, str]]:
    names = [name for name in BUILTIN if name not in DTYPES and name not in LAYOUTS]
    rows = {f"`{name}`": _runs(make(name)) for name in names if name in _made()}
    several: dict[tuple[str, str], list[str]] = {}
    for name in LAYOUTS:
        several.setdefault(_runs(make(name)), []).append(f"`{name}`")
    for label, row in rows.items():
        yield label, *row
    for row, labels in several.items():
        yield ", ".join(labels), *row


def _made() -> set[str]:
    """Return the names of schemes that weights are stored in: all but those of unknown kinds."""
    return {name for name in BUILTIN if not name.startswith("opaque")}


def _runs(scheme: Scheme) -> tuple[str, str]:
    """Say how a scheme runs on a CPU and on a GPU."""
    layer, decodes = (capabilities.has(scheme, each) for each in ("build_module", "decode_torch"))
    product = capabilities.find(scheme, "product")
    multiplied = product is not None and product(scheme) is not None
    on_cpu = ["bitsandbytes' layer"] if layer else []
    on_cpu += ["multiplied as stored"] if multiplied else []
    if capabilities.has(scheme, "linear"):
        return ("multiplied as stored, by inputs in 8 bits",) * 2
    on_gpu = "bitsandbytes' layer" if layer else "decoded piece by piece" if decodes else "decoded when loaded"
    return " or ".join(on_cpu) or "decoded piece by piece", on_gpu


def _presets() -> Iterator[tuple[str, str, str]]:
    for name, preset in PRESETS.items():
        kinds: dict[str, list[str]] = {}
        for kind, other, _ in preset.rules:
            kinds.setdefault(kind, []).append(f"`{other}`")
        some = "; ".join(f"{kind}: {', '.join(dict.fromkeys(others))}" for kind, others in kinds.items())
        yield f"`{name}`", f"`{preset.usual}`", some


def _exports() -> Iterator[tuple[str, str]]:
    for name, target in exports.BUILTIN.items():
        yield f"`{name}`", _first_line(target.partition(":")[0], "Exports to")


def _standing() -> Iterator[tuple[str, str, str]]:
    yield from _READ
    for row in FOREIGN:
        yield row.name, f"no: {row.why}; {row.instead}", _WRITTEN.get(row.name, "no")


def _types() -> str:
    return ", ".join(f"`{name.removeprefix('gguf:')}`" for name in LAYOUTS if isinstance(make(name), GGML))


def _architectures() -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for each in ARCHITECTURES:
        found.setdefault(each.gguf, []).append(each.model_type)
    for name, types in sorted(found.items()):
        yield f"`{name}`", ", ".join(f"`{each}`" for each in dict.fromkeys(types))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    text = page()
    if parser.parse_args().check:
        return int(PAGE.read_text("utf-8") != text)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
