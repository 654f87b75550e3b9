"""Runs ``aibit prune``: writes a model with fewer layers, channels, heads or experts."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from . import arguments
from .output import ProgressBar, emit, size

if TYPE_CHECKING:
    from ..convert.convert import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("source", metavar="SRC", help="what aibit convert takes: a directory, a .gguf or .aibit file")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--keep-layers", metavar="N", type=arguments.positive, help="how many layers stay")
    layers.add_argument("--drop-layers", metavar="N,N", type=_numbers, help="leave out these layers, counted from 0")
    parser.add_argument(
        "--keep-channels", metavar="N", type=arguments.positive,
        help="how many channels stay of the MLP of each layer, or of each of its experts",
    )  # fmt: skip
    parser.add_argument(
        "--keep-heads", metavar="N", type=arguments.positive,
        help="how many heads of queries stay in each layer; those that share keys and values go together",
    )  # fmt: skip
    parser.add_argument(
        "--keep-experts", metavar="N", type=arguments.positive, help="how many experts stay in each layer"
    )
    parser.add_argument(
        "--keep-hidden", metavar="N", type=arguments.positive,
        help="how many channels of the residual stream stay, the same in all layers (the hidden size)",
    )  # fmt: skip
    parser.add_argument(
        "--block", metavar="N", type=arguments.positive,
        help="keep channels in blocks of N, so that codes of a quantized source can stay as they are (1)",
    )  # fmt: skip
    parser.add_argument(
        "--uneven", action="store_true",
        help="keep so many channels in the mean, more in layers where they contribute more; no other format holds that",
    )  # fmt: skip
    parser.add_argument(
        "--refit", action="store_true",
        help="fit the matrices that read channels and heads to what is left of them, by Hessians of --calibrate",
    )  # fmt: skip
    parser.add_argument(
        "--target-size", metavar="SIZE", type=arguments.size, help="keep as much as fits in a file of this size (80MB)"
    )
    parser.add_argument(
        "--by", choices=("layers", "channels", "heads", "experts", "hidden"),
        help="what is cut for --target-size (default: experts if there are some, otherwise channels)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", metavar="FILE", action="append",
        help="statistics of activations to choose by, or a text to take them from; 'default' is the text that comes "
        "with this program (default: weights alone)",
    )  # fmt: skip
    parser.add_argument(
        "--scheme", metavar="SCHEME", default="keep", help="scheme of the Linear weights (default: as they are stored)"
    )
    parser.add_argument(
        "--tensor",
        metavar="REGEX=SCHEME",
        action="append",
        default=[],
        type=arguments.rule,
        help="as for aibit convert",
    )
    parser.add_argument("--architecture", metavar="CLASS", help="transformers class, if config.json names none")
    parser.add_argument("--jobs", type=arguments.positive, metavar="N", help="threads (default: one per core)")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=arguments.size, help="write shards of at most so many bytes of weights"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(parser=parser)


def _numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of layers with commas between them are needed")
    return tuple(sorted({int(number) for number in text.split(",")}))


def run(args: argparse.Namespace) -> int:
    """Prune, and print what is left."""
    from ..transform.prune.plan import Wanted

    wanted = Wanted(
        args.keep_layers, args.keep_channels, args.keep_heads, args.keep_experts, args.keep_hidden,
        args.drop_layers or (),
        args.block or 1, args.uneven, args.refit, args.target_size, args.by,
    )  # fmt: skip
    from ..convert.prune import prune
    from .silence import quiet_libraries

    args.source = arguments.local(args.source)
    quiet_libraries()
    with ProgressBar("calibrating", "{} steps".format) as calibrating, ProgressBar("converting") as progress:
        report = prune(
            args.source, args.output, wanted, calibration=args.calibrate, scheme=args.scheme, tensors=args.tensor,
            overwrite=args.force, on_progress=progress.update, on_calibrate=calibrating.update,
            architecture=args.architecture, jobs=args.jobs, max_shard_size=args.max_shard_size,
        )  # fmt: skip
    for note in report.notes:
        print(f"aibit: {note}", file=sys.stderr)
    _show(report, args.json)
    return 0


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        emit(asdict(report))
        return
    original, stored = size(report.original_bytes), size(report.quantized_bytes)
    print(f"kept: {report.pruned[-1]}")
    print(f"weights that are left: {original} in the source, {stored} here")
    print(f"{report.path}: {size(report.file_bytes)} in {report.seconds:.1f} s, root {report.root}")
