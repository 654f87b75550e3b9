"""Runs ``aibit merge``: joins a model's shards into one file."""

from __future__ import annotations

import argparse

from ..file import rewrite
from .output import ProgressBar, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("first", metavar="FIRST", help="the first shard: m-00001-of-00003.aibit")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Write the file, and print its path."""
    with ProgressBar("merging") as progress:
        paths = rewrite.merge(args.first, args.output, overwrite=args.force, on_progress=progress.update)
    show_written(paths, args.json)
    return 0
