"""What transformations save: ``python -m tools.bench.transformed SRC --calibration FILE ... --text FILE [--out JSON]``.

The model, its noise and the measure are those of ``frontier``: the mean Kullback-Leibler divergence from the model
before it is quantized, on held-out text. Each scheme is measured without a transformation and with each of them.
Statistics are those of the calibration texts, taken once of the model, and once of the rotated model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aibit_format as aibit
from aibit_format.torch.evaluate.judge import Question, reference_logits
from aibit_format.torch.evaluate.operands import operand
from aibit_format.torch.evaluate.perplexity import evaluate
from tools.bench.frontier import add_texts
from tools.bench.frontier_models import original
from tools.bench.machine import machine

SCHEMES = ("int4-group", "int4-group,group=32", "gguf:q4_k", "nf4")
TRANSFORMS: tuple[tuple[str, ...], ...] = ((), ("smooth",), ("awq",), ("rotate",), ("rotate", "awq"))
Row = dict[str, Any]


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row for the rotated model in its own dtype, and one for each scheme and transformation."""
    plain, turned = original(arguments.source, folder), folder / "rotated.aibit"
    aibit.convert(plain, turned, scheme="keep", transform="rotate")
    taken = {"samples": arguments.samples, "length": arguments.length}
    statistics = {source: aibit.calibrate(source, arguments.calibration, **taken) for source in (plain, turned)}
    question, path = Question(arguments.text.read_text("utf-8"), limit=arguments.tokens), folder / "m.aibit"
    with reference_logits(str(plain), question) as reference:
        for scheme, transform in [("keep", ("rotate",)), *((s, t) for s in SCHEMES for t in TRANSFORMS)]:
            source = turned if "rotate" in transform else plain
            left = [each for each in transform if each != "rotate"]
            started = time.perf_counter()
            aibit.convert(source, path, scheme, overwrite=True, transform=left, calibration=statistics[source])
            seconds = time.perf_counter() - started
            with operand(str(path), "cpu", True) as (model, _):
                found = evaluate(model, reference.text, reference).divergence
            yield {"scheme": scheme, "transform": "+".join(transform), "kl": found.mean, "error": found.mean_error,
                   "seconds": seconds}  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_texts(parser, tokens=2048)
    parser.add_argument("--out", type=Path, default=Path("transformed.json"))
    arguments = parser.parse_args(given)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(arguments, Path(folder)):
            rows.append(row)
            print(f"{row['scheme']:22} {row['transform']:12} {row['kl']:9.5f} +- {row['error']:.5f}", flush=True)
    about = {"source": arguments.source, "tokens": arguments.tokens, "samples": arguments.samples}
    arguments.out.write_text(json.dumps({"machine": machine(), **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
