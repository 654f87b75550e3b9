"""Runs ``aibit card``: prints the model card of a file, or writes it."""

from __future__ import annotations

import argparse

from ..file import sharded_reader
from ..file.sharded_reader import whole
from ..integrations.card import card
from ..io.atomic import AtomicFile
from .output import emit, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-o", "--output", metavar="OUT", help="write it to this file (default: print it)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    of_card(parser)


def of_card(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what a card says beyond the file."""
    parser.add_argument("--base-model", metavar="ID", help="the original's id on the hub (default: what the file says)")
    parser.add_argument("--license", metavar="SPDX", help="the licence (default: that of the original's card)")


def run(args: argparse.Namespace) -> int:
    """Print or write the card."""
    with sharded_reader.open(args.file) as file:
        text = card(whole(file), base_model=args.base_model, license=args.license)
    if args.output:
        with AtomicFile(args.output, args.force) as out:
            out.write(text.encode())
            out.publish()
        show_written([args.output], args.json)
    elif args.json:
        emit({"card": text})
    else:
        print(text, end="")
    return 0
