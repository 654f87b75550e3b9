"""Writes a model card: the metadata by which a hub finds a model, and what a file knows of its weights, for people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..container.documents import parse_json
from ..file.sharded_reader import Opened

__all__ = ["MARK", "card"]

MARK = "<!-- written by aibit from the file's metadata -->"  # a card that has it may be written anew
_FRONT = re.compile(r"\A---\r?\n(.*?\n)---\r?\n", re.DOTALL)
_ENTRY = re.compile(
    r"^(license|license_name|license_link|language|pipeline_tag|base_model):(.*(?:\n[ \-].*)*)", re.MULTILINE
)
# What a model does on a hub, by the end of its class's name.
_TASKS = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForMaskedLM", "fill-mask"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("Model", "feature-extraction"),
)
_QUALITY = (
    ("quality.kl_mean", "mean KL divergence to the original, nats a token"),
    ("quality.kl_99", "99th percentile of it"),
    ("quality.same_first", "tokens whose likeliest successor is the same"),
    ("quality.perplexity", "perplexity"),
    ("quality.reference_perplexity", "perplexity of the original"),
    ("quality.tokens", "tokens they were measured on"),
)
_ORIGIN = (
    ("source.repository", "repository"),
    ("source.revision", "revision"),
    ("source.kind", "format"),
    ("source.files", "files"),
    ("source.xxh3_128", "xxh3_128 of each"),
    ("quantization.recipe", "recipe"),
    ("quantization.method", "method"),
    ("transform.applied", "transforms"),
    ("tool.version", "version of aibit"),
    ("tool.libraries", "libraries"),
)


def card(file: Opened, *, base_model: str | None = None, license: str | None = None) -> str:
    """Return a model card in Markdown, with the metadata that a hub reads at its head.

    Licence, languages and task are those of the original's card, which the file holds, unless they are given.

    Args:
        file: an open ``.aibit`` file.
        base_model: the id of the original on the hub; from the file's metadata if it says so.
        license: an SPDX identifier, in small letters.
    """
    metadata = file.metadata
    name = os.path.basename(file.path or "model.aibit")
    architecture = str(metadata.get("model.architecture", ""))
    original = _original(file)
    base = base_model or metadata.get("source.repository")
    entries: dict[str, str] = {"library_name": "aibit", "tags": json.dumps(["aibit", *_schemes(file)])}
    task = next((task for ending, task in _TASKS if architecture.endswith(ending)), None)
    if task is not None:
        entries["pipeline_tag"] = task
    entries |= original
    if base:
        entries["base_model"] = json.dumps(base)
    if license:
        entries["license"] = json.dumps(license)
    if "base_model" in entries:
        entries["base_model_relation"] = "quantized"
    head = "".join(
        f"{key}:{value if value.startswith(chr(10)) else ' ' + value.strip()}\n" for key, value in entries.items()
    )
    return f"---\n{head}---\n\n{MARK}\n\n" + "\n".join(_text(file, name, base)) + "\n"


def _text(file: Opened, name: str, base: str | None) -> Iterator[str]:
    metadata = file.metadata
    of = f"{_code(base)}, quantized" if base else "A quantized model"
    yield f"# {_plain(os.path.splitext(name)[0])}"
    yield ""
    yield f"{of}, in one `.aibit` file: weights, config, tokenizer, checksums."
    yield ""
    yield "```sh"
    yield "pip install 'aibit-format[hf]'"
    yield f'aibit run {_plain(name)} "Hello"'
    yield "```"
    yield ""
    yield from _table("file", (
        ("architecture", metadata.get("model.architecture")),
        ("parameters", metadata.get("model.parameters")),
        ("bytes", file.size),
        ("bits a parameter", _bits(file)),
        ("root digest", file.root),
        ("signed by", sorted({each.key_id for part in file.parts for each in part.signatures}) or None),
    ))  # fmt: skip
    yield from _table(
        "scheme", ((scheme, f"{count} tensors, {size:,} bytes") for scheme, (count, size) in _schemes(file).items())
    )
    yield from _table("quality", ((label, metadata.get(key)) for key, label in _QUALITY))
    yield from _table("made from", ((label, metadata.get(key)) for key, label in _ORIGIN))


def _table(title: str, rows: Any) -> Iterator[str]:
    """Yield a table of the rows that have a value; nothing if none has."""
    known = [(label, value) for label, value in rows if value is not None and np.size(value)]
    if known:
        yield f"| {title} | |"
        yield "|---|---|"
        for label, value in known:
            yield f"| {label} | {_code(value)} |"
        yield ""


def _schemes(file: Opened) -> dict[str, tuple[int, int]]:
    """Return how many tensors each scheme has, and their bytes, the largest first; aliases are not counted."""
    found: dict[str, tuple[int, int]] = {}
    for name in file:
        info = file.info(name)
        if info.alias_of is None:
            count, size = found.get(info.scheme.name, (0, 0))
            found[info.scheme.name] = count + 1, size + sum(plane.length for plane in info.planes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _bits(file: Opened) -> str | None:
    count = file.metadata.get("model.parameters")
    return f"{8 * sum(size for _, size in _schemes(file).values()) / count:.2f}" if count else None


def _original(file: Opened) -> dict[str, str]:
    """Return what the head of the original's card says and is still true, and its id if the config names it."""
    found: dict[str, str] = {}
    config: Any = parse_json("config.json", text) if (text := file.documents.get("config.json")) is not None else {}
    named = config.get("_name_or_path") if isinstance(config, Mapping) else None
    if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named, re.ASCII):
        found["base_model"] = json.dumps(named)
    head = _FRONT.match(bytes(file.documents.get("README.md", b"")).decode("utf-8", "replace"))
    for key, value in _ENTRY.findall(head[1]) if head else ():
        if key != "base_model":  # that of the original is its own
            found[key] = value
    return found


def _code(value: Any) -> str:
    """Format a value in Markdown, each part as code, such that nothing in it can end the code, the cell or the line."""
    parts = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    shown = [f"`{_plain(f'{part:.6g}' if isinstance(part, float) else str(part))}`" for part in parts[:8]]
    return ", ".join(shown) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c not in "`|<>")
