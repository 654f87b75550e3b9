"""What fewer tokens save and cost: ``python -m tools.bench.trimmed MODEL ... --text FILE ... --held FILE ...``.

Each model is written whole, and with the tokens that the texts have: all of them, those that come twice or more, those
that make up 99.99 % and 99 %, and those in Latin script. Weights stay in the scheme in which the source has them. Files
and rows are compared, and on each held-out text tokens a word, and lines with other tokens. Of causal models also nats
a word are, on the first words of each held-out text: the sum of all tokens' losses, so that a model that needs more
tokens for a word pays for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import aibit_format as aibit
from aibit_format.calibrate.text import read
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text
from aibit_format.transform.vocabulary.texts import compared
from tools.bench.machine import machine

CHOICES: dict[str, dict[str, Any]] = {
    "all tokens of the text": {}, "twice or more": {"min_count": 2}, "99.99 % of the text": {"coverage": 0.9999},
    "99 % of the text": {"coverage": 0.99}, "latin": {"scripts": ["latin"]},
}  # fmt: skip
Row = dict[str, Any]


def nats_a_word(path: Path, text: str, words: int) -> float | None:
    """Return the loss of the first words of a text, in nats a word; ``None`` of a model that predicts no next token."""
    model, tokenizer = aibit.load(path)
    if not model.can_generate():
        return None
    pieces = text.split(" ")[:words]
    ids = torch.tensor(tokenizer(" ".join(pieces), verbose=False)["input_ids"])
    found = evaluate(model, Text(ids, 512))
    return found.loss * found.tokens / len(" ".join(pieces).split())


def measured(model: str, arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row for each choice of tokens."""
    whole, cut = folder / "whole.aibit", folder / "cut.aibit"
    size = aibit.convert(model, whole, "keep", overwrite=True).file_bytes
    held = {path.name: read([str(path)]).parts[0] for path in arguments.held}
    before, losses = aibit.load_tokenizer(whole), {
        name: nats_a_word(whole, text, arguments.words) for name, text in held.items()
    }  # fmt: skip
    for name, how in CHOICES.items():
        texts = () if "scripts" in how else arguments.text
        report = aibit.trim(model, cut, texts, measure=arguments.held[:1], overwrite=True, **how)
        after, rows = aibit.load_tokenizer(cut), {}
        for held_name, text in held.items():
            found = compared(before, after, report.kept, [text])
            rows[held_name] = {
                "words": found.words, "tokens_a_word_before": found.tokens_before / found.words,
                "tokens_a_word": found.tokens_after / found.words, "lines": found.texts, "changed": found.changed,
                "nats_a_word_before": losses[held_name], "nats_a_word": nats_a_word(cut, text, arguments.words),
            }  # fmt: skip
        yield {
            "model": Path(model).name, "kept": name, "rows_before": report.rows_before, "rows": report.rows,
            "reasons": report.reasons, "file_before": size, "file": report.conversion.file_bytes,
            "embeddings_before": report.bytes_before, "embeddings": report.bytes_after, "held": rows,
        }  # fmt: skip


def shown(row: Row) -> str:
    """Return a line of the table for each held-out text."""
    lines = []
    for name, held in row["held"].items():
        loss = "" if held["nats_a_word"] is None else f"{held['nats_a_word_before']:.3f} -> {held['nats_a_word']:.3f}"
        lines.append(
            f"| {row['model']} | {row['kept']} | {row['rows_before']:,} -> {row['rows']:,} "
            f"| {row['file_before'] / 1e6:.1f} -> {row['file'] / 1e6:.1f} | {name} "
            f"| {held['tokens_a_word_before']:.3f} -> {held['tokens_a_word']:.3f} "
            f"| {held['changed'] / held['lines']:.1%} | {loss} |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", metavar="MODEL", nargs="+", help="what aibit convert takes")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="whose tokens are kept")
    parser.add_argument("--held", type=Path, nargs="+", required=True, metavar="FILE", help="held-out texts")
    parser.add_argument("--words", type=int, default=1000, help="of each held-out text that are predicted (1000)")
    parser.add_argument("--out", type=Path, default=Path("trimmed.json"))
    arguments = parser.parse_args(given)
    about = {"texts": [path.name for path in arguments.text], "words": arguments.words}
    rows: list[Row] = []
    print("| model | kept | rows | file, MB | held-out text | tokens a word | lines changed | nats a word |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for row in measured(model, arguments, Path(folder)):
                rows.append(row)
                print(shown(row), flush=True)
                found = {"about": about, "machine": machine(), "rows": rows}
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
