"""Quality against size: ``python -m tools.bench.frontier SRC --calibration FILE ... --text FILE --out JSON``.

Each row is a scheme, a way of finding its codes (to nearest or by a search on the weights alone; with an importance of
columns; GPTQ; AWQ; both) and an encoder: this package's, or llama.cpp's (libgguf) on the same tensors in the same
types, with the same importance. Importance and Hessians are those of the calibration texts, and the measure is taken on
held-out text (``frontier_models``). ``frontier_rows`` says which rows there are.

Rows are written to the JSON as they come. A run that was ended goes on where it was, if it is started again with the
same arguments; with ``--folder`` it finds the model, its statistics and its predictions again, too. ``frontier_tables``
prints the tables of results and draws their picture; that is done at the end here, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import aibit_format as aibit
from aibit_format.calibrate.files import load as load_statistics
from aibit_format.calibrate.statistics import Statistics, importance
from aibit_format.convert.allocation import Choices
from aibit_format.errors import RecipeError
from aibit_format.torch.evaluate.search import Target, search
from tools.bench import frontier_tables
from tools.bench.frontier_models import SEED, linear_names, measure_of, original, values_of
from tools.bench.frontier_rows import AWQ, BOTH, GPTQ, LLAMA, PLAIN, Row, key_of, rows
from tools.bench.machine import machine

NUMBERS = {
    "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14,
    "iq4_nl": 20, "iq4_xs": 23,
}  # fmt: skip  # of libgguf
Results = dict[str, Any]


class Bench:
    """Makes the rows of one model."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments, self._folder = arguments, folder
        self.model = original(arguments.source, folder)
        config = json.loads((self.model / "config.json").read_text("utf-8"))
        self.is_encoder = not any("CausalLM" in each for each in config.get("architectures") or [])
        self.measure = measure_of(
            self.model, arguments.text.read_text("utf-8"), arguments.tokens, folder, self.is_encoder
        )
        self._linear = linear_names(self.measure.model)
        self._inputs = _inputs(self.measure.model)
        self._measured: dict[str, tuple[float, float]] = {}

    @cached_property
    def statistics(self) -> Statistics:
        """Return the statistics of the model, with Hessians."""
        path, given = self._folder / "statistics.safetensors", self._arguments
        if not path.exists():
            aibit.calibrate(
                self.model, given.calibration, path, samples=given.samples, length=given.length, hessians=""
            )
        return load_statistics(str(path))

    def choices(self, method: str | None) -> Choices:
        """Return what each weight costs in each scheme, by the calibration text."""
        path = self._folder / f"choices-{method}.npz"
        if not path.exists():
            found = self._search(Target(bits=5.0), self._folder / "m.aibit", method, None).choices
            np.savez(path, names=found.names, nbytes=found.nbytes, costs=found.costs)
        with np.load(path) as file:
            return Choices(tuple(file["names"].tolist()), file["nbytes"], file["costs"])

    def row(self, row: Row, before: Sequence[Mapping[str, Any]]) -> Results:
        """Make a row; ``before`` are those that were made."""
        path = self._folder / "m.aibit"
        method = "gptq" if row.how in (GPTQ, BOTH) else None
        if row.scheme.startswith("bits"):
            self.choices(method)  # which is no part of the time
        wall, cpu = time.perf_counter(), time.process_time()
        said = self._convert(row, path, method, before)
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        values = dict(self._theirs(path, row.how != PLAIN) if row.encoder == LLAMA else values_of(path))
        distance, error = self._distance(values)
        return row.about() | self._sizes(path, row.scope) | {"distance": distance, "error": error} | said | spent

    def _convert(self, row: Row, path: Path, method: str | None, before: Sequence[Mapping[str, Any]]) -> Results:
        if row.scheme.startswith("bits"):
            found = self._search(Target(bits=_bits(row.scheme, before)), path, method, self.choices(method))
            return {"schemes": found.schemes, "expected": found.predicted_kl}
        given: Any = {} if row.how == PLAIN else {"calibration": self.statistics}
        tensors = {}
        if row.scope == "all" and row.scheme.startswith("gguf:"):
            tensors = {f"^{re.escape(name)}$": row.scheme for name in self._inputs}
        aibit.convert(
            self.model, path, row.scheme, tensors, overwrite=True, method=method, **given,
            transform="awq" if row.how in (AWQ, BOTH) else (),
        )  # fmt: skip
        return {}

    def _search(self, target: Target, path: Path, method: str | None, choices: Choices | None) -> Any:
        text = self._arguments.calibration[0].read_text("utf-8")
        return search(
            str(self.model), str(path), target, text, calibration=self.statistics, overwrite=True, method=method,
            choices=choices,
        )  # fmt: skip

    def _theirs(self, path: Path, weighted: bool) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what llama.cpp's encoder makes of the same tensors in the same types."""
        import gguf
        import libgguf

        weights = importance(self.statistics) if weighted else {}
        plain = self._folder / "plain.aibit"
        if not plain.exists():
            aibit.convert(self.model, plain, "keep")
        with aibit.open(path) as file, aibit.open(plain) as values:
            for name in file:
                kind = file.info(name).scheme.name.removeprefix("gguf:")
                if kind not in NUMBERS:
                    yield name, np.array(file.dequantize(name))
                    continue
                x = np.ascontiguousarray(values.dequantize(name), np.float32)
                given = None if name not in weights else np.ascontiguousarray(weights[name])
                raw = libgguf.quantize_rows_raw(NUMBERS[kind], x, *x.shape, given)
                blocks = np.frombuffer(raw, np.uint8).reshape(len(x), -1)
                found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(NUMBERS[kind]))
                yield name, found.reshape(x.shape)

    def _distance(self, values: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Return what the measure says; the same values are measured once."""
        state = xxhash.xxh3_128()
        for name in sorted(values):
            state.update(name.encode())
            state.update(np.ascontiguousarray(values[name]).data)
        key = state.hexdigest()
        if key not in self._measured:
            self._measured[key] = self.measure.of(values.items())
        return self._measured[key]

    def _sizes(self, path: Path, scope: str) -> Results:
        """Return the bits of a weight, of those that a scope is about, and the bytes of the file."""
        with aibit.open(path) as file:
            infos = [file.info(name) for name in file]
            matrices = {info.name for info in infos if len(info.shape) > 1} if scope == "all" else self._linear
            infos = [info for info in infos if not info.alias_of and info.name in matrices]
            stored = sum(plane.nbytes for info in infos for plane in file.planes(info.name).values())
            return {"bits": 8 * stored / sum(int(np.prod(info.shape)) for info in infos), "file_bytes": file.size}


def _bits(scheme: str, before: Sequence[Mapping[str, Any]]) -> float:
    """Return the bits of a target: as it says, or those of a preset that was measured."""
    kind, _, value = scheme.partition("=")
    if kind == "bits":
        return float(value)
    name = scheme.removeprefix("bits of ")
    return next(each["bits"] for each in before if each["scheme"] == name and each["scope"] == "all")


def _inputs(model: Any) -> list[str]:
    """Return the names of the input embeddings, and of a head that is not tied to them."""
    names = {id(value): name for name, value in model.named_parameters()}
    ends = (model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)())
    return list(dict.fromkeys(names[id(end.weight)] for end in ends if end is not None))


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[Results]:
    """Yield the results after each row."""
    bench = Bench(arguments, folder)
    about = {
        "model": arguments.name or os.path.basename(arguments.source.rstrip("/")), "measure": bench.measure.unit,
        "size": bench.measure.size, "samples": arguments.samples, "length": arguments.length, "seed": SEED,
        "texts": [xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in (arguments.text, *arguments.calibration)],
    }  # fmt: skip
    results: Results = {"machine": machine(), **about, "rows": []}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text("utf-8"))
        if other := [key for key, value in about.items() if results.get(key) != value]:
            raise SystemExit(f"{arguments.out}: results of another run: its {', '.join(other)} differ")
    done = {key_of(each) for each in results["rows"]}
    for row in rows(arguments.schemes, folded=not bench.is_encoder, searched=not bench.is_encoder):
        if row.key in done or not re.search(arguments.only, row.text):
            continue
        try:
            results["rows"].append(bench.row(row, results["rows"]))
        except RecipeError as error:  # it does not apply to this model
            print(f"{row.text} left out: {error}")
            continue
        yield results


def write(results: Results, path: Path) -> None:
    """Write results so that a file that is there is never half of one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    partial.rename(path)


def add_texts(parser: argparse.ArgumentParser, tokens: int) -> None:
    """Add the model and the texts to a program's arguments; so many ``tokens`` of the held-out text by default."""
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="held-out text")
    parser.add_argument("--tokens", type=int, default=tokens, help="of the held-out text (%(default)s)")
    parser.add_argument("--samples", type=int, default=32, help="of the calibration texts (32)")
    parser.add_argument("--length", type=int, default=512, help="of a sample in tokens (512)")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_texts(parser, tokens=4096)
    parser.add_argument("--schemes", nargs="+", default=[], metavar="SCHEME", help="these alone, as convert takes them")
    parser.add_argument("--only", default="", metavar="REGEX", help="measure rows whose line has a match")
    parser.add_argument("--out", type=Path, default=Path("frontier.json"))
    parser.add_argument("--name", help="of the model in the results (default: the end of SRC)")
    parser.add_argument("--folder", type=Path, help="keep the model, its statistics and its predictions here")
    parser.add_argument("--svg", type=Path, help="the picture (beside the JSON by default)")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for results in measured(arguments, folder):
            write(results, arguments.out)
            last = results["rows"][-1]
            row = Row(last["scope"], last["scheme"], last["how"], last["encoder"])
            print(f"{row.text} {last['bits']:6.3f} {last['distance']:9.5f} {last['cpu_seconds']:6.1f} s", flush=True)
    frontier_tables.show([arguments.out], arguments.svg or arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
