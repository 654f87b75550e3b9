"""Runs ``aibit calibrate``: takes statistics of what goes into a model's layers when it reads a text."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..calibrate.statistics import EPS, THRESHOLD
from . import arguments
from .output import ProgressBar, emit, table

if TYPE_CHECKING:
    from ..calibrate.statistics import Inputs, Statistics


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("source", metavar="SRC", help="what aibit convert takes: a directory, a .gguf or .aibit file")
    parser.add_argument(
        "-o", "--output", metavar="STATS", required=True,
        help="the file to write: llama.cpp's imatrix if it ends in .gguf or .dat (its old form), otherwise safetensors",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="FILE", nargs="+", action="extend", default=[],
        help="texts in UTF-8, like those the model is for (default: a short one that comes with this program)",
    )  # fmt: skip
    parser.add_argument(
        "--samples",
        type=arguments.positive,
        metavar="N",
        help="pieces of the texts to use (100, of the default text all)",
    )
    parser.add_argument(
        "--length", type=arguments.positive, metavar="N", help="tokens of a sample (512, or what the model takes)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of samples (0)")
    parser.add_argument(
        "--eps", type=float, default=EPS, help="of the symmetry score exp(-|mean| / (std + eps)) (1e-8)"
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="score above which int8-auto is symmetric (0.6)"
    )
    parser.add_argument(
        "--hessians", metavar="REGEX", nargs="?", const="",
        help="also the sum of x^T x, K x K float32, for weights whose name contains a match of REGEX (default: all)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="the model computes in (default: as its config says)",
    )
    parser.add_argument("--architecture", metavar="CLASS", help="transformers class, if config.json names none")
    parser.add_argument("--force", action="store_true", help="replace STATS if it exists")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Take the statistics, and print a line for each layer."""
    if not args.eps >= 0 or args.seed < 0:
        args.parser.error("--eps and --seed must not be negative")
    from .silence import quiet_libraries

    args.source = arguments.local(args.source)
    quiet_libraries()
    from ..calibrate.calibrate import calibrate
    from ..calibrate.statistics import unreached

    with ProgressBar("calibrating", "{} steps".format) as progress:
        found = calibrate(
            args.source, args.text, args.output, samples=args.samples, length=args.length, seed=args.seed,
            eps=args.eps, threshold=args.threshold, hessians=args.hessians, device=args.device, dtype=args.dtype,
            architecture=args.architecture, overwrite=args.force, on_progress=progress.update,
        )  # fmt: skip
    if found.unreached:
        print(f"aibit: {unreached(found.unreached)}", file=sys.stderr)
    if not found.about.streamed:
        why = "this model cannot be run a block at a time: all of it was in memory"
        print(f"aibit: {args.source}: {why}", file=sys.stderr)
    _show(args, found)
    return 0


def _show(args: argparse.Namespace, found: Statistics) -> None:
    eps = found.about.eps
    rows = [_row(name, inputs, eps) for name, inputs in found.inputs.items()]
    if args.json:
        about = asdict(found.about) | {"names": list(found.about.names)}
        emit({"path": args.output, "digest": found.digest, **about, "tensors": rows, "unreached": found.unreached})
        return
    lines = [
        [row["name"], f"{row['tokens']:,}", *(_number(row[key]) for key in ("mean", "std", "low", "high", "score"))]
        for row in rows
    ]
    print(table(["tensor", "tokens", "mean", "std", "min", "max", "score"], lines, right=(1, 2, 3, 4, 5, 6)))
    print()
    about = found.about
    print(f"{about.samples} samples of {about.length} tokens from {', '.join(about.names)}, {about.tokens:,} in all")
    print(f"{args.output}: statistics of {len(rows)} tensors, digest {found.digest}")


def _row(name: str, found: Inputs, eps: float) -> dict[str, Any]:
    low, high = found.extremes or (None, None)
    row = {
        "name": name, "tokens": found.tokens, "columns": found.sum2.shape[1], "mean": found.mean, "std": found.std,
        "low": low, "high": high, "score": found.score(eps),
        "percentiles": None if found.percentiles is None else found.percentiles.tolist(),
    }  # fmt: skip
    return row | ({"expert_tokens": found.counts.tolist()} if found.experts else {})


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
