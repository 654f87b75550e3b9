"""``aibit export FILE --to FORMAT -o OUT``."""

from __future__ import annotations

import argparse

from ..formats.export_tensors import DTYPE_OPTIONS
from ..formats.exports import BUILTIN, export, options_of
from . import arguments
from .output import ProgressBar, show_written

_OPTIONS = ("dtype", "type", "max_shard_size", "dequantize")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--to", required=True, choices=BUILTIN, help="the format")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the directory or file to write")
    parser.add_argument(
        "--dtype", choices=DTYPE_OPTIONS,
        help="safetensors: of the weights (default: as the model has them); huggingface: what 4-bit layers compute in",
    )  # fmt: skip
    parser.add_argument("--type", metavar="T", help="gguf: keep (default), f16, q8_0, ...")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=arguments.size, help="of a file of weights (default: 5GB)"
    )
    parser.add_argument(
        "--dequantize", action="store_true", default=None,
        help="huggingface: write the values of tensors that bitsandbytes has no layer for",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace what exists")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write, and say what was written."""
    options = {name: value for name in _OPTIONS if (value := vars(args)[name]) is not None}
    if wrong := sorted(options.keys() - options_of(args.to)):
        args.parser.error(f"--to {args.to} takes no --{wrong[0].replace('_', '-')}")
    from .silence import quiet_libraries

    quiet_libraries()
    with ProgressBar("exporting") as progress:
        paths = export(args.file, args.to, args.output, **options, overwrite=args.force, on_progress=progress.update)
    show_written(paths, args.json, format=args.to)
    return 0
