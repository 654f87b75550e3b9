"""Runs ``aibit bench``: measures how fast a model opens, verifies, loads and generates on this machine."""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LoadError, MissingPackageError
from ..file import sharded_reader
from .arguments import local, positive
from .output import emit, size

_FORMATS = ("md", "json", "csv")


@dataclass(frozen=True)
class Figure:
    """Hold the result of a test: all samples, in ``unit``."""

    test: str
    unit: str
    samples: list[float]

    @property
    def median(self) -> float:
        """Return the median of the samples."""
        return statistics.median(self.samples)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-p", "--prompt", type=positive, default=128, metavar="N", help="tokens in the prompt (128)")
    parser.add_argument("-n", "--new-tokens", type=positive, default=16, metavar="N", help="tokens to generate (16)")
    parser.add_argument("-b", "--batch", type=positive, default=1, metavar="N", help="sequences generated at once (1)")
    parser.add_argument("-r", "--rounds", type=positive, default=3, metavar="N", help="rounds of each test (3)")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="CPU threads (all cores)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weight-only", action="store_true", help="do not quantize inputs; see aibit run")
    parser.add_argument("-o", "--output", choices=_FORMATS, default="md", help="Markdown (default), JSON or CSV")


def run(args: argparse.Namespace) -> int:
    """Measure, and print the results."""
    from .silence import quiet_libraries

    args.file = local(args.file)
    quiet_libraries()
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("running a model needs torch: pip install 'aibit-format[hf]'") from error
    if args.threads:
        torch.set_num_threads(args.threads)
    about = _about(args) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    figures = list(_figures(args))
    form = "json" if args.json else args.output
    if form == "json":
        emit(about | {"tests": [asdict(figure) | {"median": figure.median} for figure in figures]})
    elif form == "csv":
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow([*about, "test", "unit", "median", "least", "most"])
        for f in figures:
            rows.writerow([*about.values(), f.test, f.unit, f.median, min(f.samples), max(f.samples)])
    else:
        _show(about, figures)
    return 0


def _about(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the model and the conditions of the measurement."""
    with sharded_reader.open(args.file) as file:
        infos = [info for name in file if not (info := file.info(name)).alias_of]
        elements: dict[str, int] = {}
        for info in infos:
            text = info.scheme.stated.text
            elements[text] = elements.get(text, 0) + math.prod(info.shape)
        return {
            "file": args.file, "bytes": file.size, "parameters": sum(elements.values()),
            "scheme": max(elements, key=lambda scheme: elements[scheme], default=""), "device": args.device,
            "weight_only": args.weight_only, "batch": args.batch,
        }  # fmt: skip


def _figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the result of each test when it is done. The file is in memory during all of them."""
    from ..torch.evaluate import timing
    from ..torch.load.model import load_model

    rounds = range(args.rounds)
    _check(args, load_model(args.file, args.device))  # also makes libraries import what they import on demand
    yield Figure("open", "ms", [1e3 * _seconds(lambda: sharded_reader.open(args.file).close()) for _ in rounds])
    with sharded_reader.open(args.file) as file:
        file.verify()
        yield Figure("verify", "GB/s", [file.size / 1e9 / _seconds(file.verify) for _ in rounds])
    model, loading = None, []
    for _ in rounds:
        model = None  # frees the previous one first
        start = time.perf_counter()
        model = load_model(args.file, args.device, weight_only=args.weight_only)
        loading.append(time.perf_counter() - start)
    yield Figure("load", "s", loading)
    timing.generate(model, args.batch, min(args.prompt, 8), 1)  # touches the pages for the first time
    found = [timing.generate(model, args.batch, args.prompt, args.new_tokens) for _ in rounds]
    yield Figure(f"pp{args.prompt}", "tokens/s", [args.batch * args.prompt / prompt for prompt, _ in found])
    each = [statistics.median(tokens) for _, tokens in found]
    yield Figure(f"tg{args.new_tokens}", "tokens/s", [args.batch / seconds for seconds in each])


def _check(args: argparse.Namespace, model: Any) -> None:
    """Raise LoadError for a model that cannot generate so many tokens."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise LoadError(f"{args.file}: {type(model).__name__} does not continue a prompt")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and args.prompt + args.new_tokens > longest:
        raise LoadError(f"{args.file}: {args.prompt} and {args.new_tokens} tokens, the model takes {longest}")


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def _show(about: dict[str, Any], figures: list[Figure]) -> None:
    weights = f"{about['parameters'] / 1e6:,.1f} million parameters, most in {about['scheme']}"
    print(f"{about['file']}: {size(about['bytes'])}, {weights}")
    how = [f"{about['threads']} threads on {about['device']}, torch {about['torch']}", f"batch {about['batch']}"]
    print(", ".join([*how, *["weight only"] * about["weight_only"]]))
    print("\n| test | median | least | most | |\n|---|--:|--:|--:|---|")
    for f in figures:
        print(f"| {f.test} | {_number(f.median)} | {_number(min(f.samples))} | {_number(max(f.samples))} | {f.unit} |")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
