"""Runs ``aibit push``: uploads a file and its model card to a hub."""

from __future__ import annotations

import argparse
import os
import sys

from ..file.sharded_reader import paths_of
from ..integrations.push import push
from .card import of_card
from .output import emit, size
from .silence import quiet_hub


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE", help="the file, or the first shard of a model")
    parser.add_argument("repository", metavar="REPO", help="owner/name; made if there is none")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to write to (main)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("-m", "--message", metavar="TEXT", help="the message of the commit")
    parser.add_argument("--replace-card", action="store_true", help="replace also a card that somebody wrote")
    of_card(parser)


def run(args: argparse.Namespace) -> int:
    """Upload, and print where it went."""
    quiet_hub()
    if sys.stderr.isatty():
        print(
            f"uploading {size(sum(map(os.path.getsize, filter(os.path.exists, paths_of(args.file)))))} ...",
            file=sys.stderr,
        )
    made = push(
        args.file, args.repository, revision=args.revision, private=args.private, create_pr=args.create_pr,
        message=args.message, base_model=args.base_model, license=args.license, replace_card=args.replace_card,
    )  # fmt: skip
    if args.json:
        emit(made._asdict())
        return 0
    print(made.url)
    for name in made.files:
        print(f"  {name}")
    if not made.card:
        print("  the repository's README.md stays; --replace-card writes it anew")
    return 0
