"""Runs ``aibit graph``: writes a copy of a model with the graph of what it computes."""

from __future__ import annotations

import argparse
import sys

from .output import ProgressBar, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="IN", help="the file, or the first shard of a model")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the file to write; shards get names derived from it"
    )
    parser.add_argument("--positions", type=int, metavar="N", help="tokens of a sequence at most (the model's context)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Record the model, write the copy, and print its paths."""
    from .silence import quiet_libraries

    if args.positions is not None and args.positions < 1:
        args.parser.error("--positions must be 1 or more")
    quiet_libraries()
    from ..torch.record.store import add_graph

    with ProgressBar("writing") as progress:
        program, paths = add_graph(
            args.file, args.output, positions=args.positions, overwrite=args.force, on_progress=progress.update
        )
    print(f"aibit: {len(program.nodes)} steps, up to {program.positions} tokens", file=sys.stderr)
    show_written(paths, args.json)
    return 0
