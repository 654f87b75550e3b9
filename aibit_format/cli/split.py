"""Runs ``aibit split``: cuts a model into shards."""

from __future__ import annotations

import argparse

from ..file import rewrite
from . import arguments
from .output import ProgressBar, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="IN", help="the file, or the first of several shards, to cut it differently")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True,
        help="the shards get names derived from it: m.aibit gives m-00001-of-00003.aibit and so on",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", required=True, type=arguments.size,
        help="most bytes of weights in a shard: 5GB, 500MB, 4GiB",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Write the shards, and print their paths."""
    with ProgressBar("splitting") as progress:
        paths = rewrite.split(
            args.file, args.output, args.max_shard_size, overwrite=args.force, on_progress=progress.update
        )
    show_written(paths, args.json)
    return 0
