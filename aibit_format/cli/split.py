"""``aibit split IN -o OUT --max-shard-size SIZE``: one model in several files."""

from __future__ import annotations

import argparse

from ..file import rewrite
from . import arguments
from .output import ProgressBar, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("file", metavar="IN", help="the file, or the first of shards that are to be cut anew")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True,
        help="what the shards are named after: m.aibit makes m-00001-of-00003.aibit and so on",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", required=True, type=arguments.size,
        help="bytes of weights in a shard: 5GB, 500MB, 4GiB",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Write, and say what was written."""
    with ProgressBar("splitting") as progress:
        paths = rewrite.split(
            args.file, args.output, args.max_shard_size, overwrite=args.force, on_progress=progress.update
        )
    show_written(paths, args.json)
    return 0
