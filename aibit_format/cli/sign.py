"""Runs ``aibit sign``: signs a file, inside a copy of it or detached, or makes a key."""

from __future__ import annotations

import argparse
import os
from getpass import getpass

from ..container import signatures
from ..file import signing
from .output import ProgressBar, emit


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE", nargs="?")
    parser.set_defaults(late="file", parser=parser)
    parser.add_argument("--key", metavar="PEM", action="append", help="file of an Ed25519 private key; may be repeated")
    parser.add_argument("-o", "--output", metavar="OUT", help="the signed copy; or with --detached, the signatures")
    parser.add_argument("--detached", action="store_true", help="write only signatures, to FILE.sig by default")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument("--new-key", metavar="NAME", help="make the private key NAME.pem and the public key NAME.pub")
    parser.add_argument("--password", action="store_true", help="ask for the private key's password")


def run(args: argparse.Namespace) -> int:
    """Make a key or sign, and print the result."""
    if bool(args.new_key) == bool(args.file):
        args.parser.error("say which FILE to sign, or --new-key NAME")
    if args.file and not args.key:
        args.parser.error("give a key to sign with: --key PEM")
    if args.file and not args.detached and not args.output:
        args.parser.error("give a path for the signed copy: -o OUT (or --detached, for a signature beside FILE)")
    password = getpass("password of the private key: ").encode() if args.password else None
    if args.new_key:
        made = {"key": signing.new_key(args.new_key, password)}
        made |= {"private": args.new_key + signing.PRIVATE, "public": args.new_key + signing.PUBLIC}
        if not args.json:
            print(f"{made['key']}\n  {made['private']}: keep it secret\n  {made['public']}: needed to verify")
    else:
        output = args.output or args.file + signatures.SUFFIX
        options = {"overwrite": args.force, "password": password}
        if args.detached:
            found = signing.sign_detached(args.file, args.key, output, **options)
        else:
            with ProgressBar("signing") as progress:
                found = signing.sign(args.file, args.key, output, **options, on_progress=progress.update)
        made = {"file": args.file, "output": output, "size": os.path.getsize(output)}
        made["signatures"] = [signature.key_id for signature in found]
        if not args.json:
            print(f"{output}: signed by {', '.join(made['signatures'])}")
    if args.json:
        emit(made)
    return 0
