"""Runs ``aibit sign``: signs a file, inside a copy of it, detached or for another tool, or makes a key."""

from __future__ import annotations

import argparse
import os
import shlex
from getpass import getpass

from ..container import signatures
from ..file import bundle, signing
from .output import ProgressBar, emit


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE", nargs="?")
    parser.set_defaults(late="file", parser=parser)
    parser.add_argument(
        "--key",
        metavar="PEM",
        action="append",
        help="file of an Ed25519 private key (or see --bundle); may be repeated",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="the signed copy; or what --detached or --bundle write")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--detached", action="store_true", help="write only signatures, to FILE.sig by default")
    way.add_argument(
        "--bundle", action="store_true",
        help="write only a bundle of OpenSSF Model Signing, to FILE.model.sig by default, for model-signing to verify: "
        "over the whole file, or all shards of which it is the first, with one ECDSA key (P-256, P-384 or P-521)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument("--new-key", metavar="NAME", help="make the private key NAME.pem and the public key NAME.pub")
    parser.add_argument("--password", action="store_true", help="ask for the private key's password")


def run(args: argparse.Namespace) -> int:
    """Make a key or sign, and print the result."""
    if bool(args.new_key) == bool(args.file):
        args.parser.error("say which FILE to sign, or --new-key NAME")
    if args.file and not args.key:
        args.parser.error("give a key to sign with: --key PEM")
    if args.file and not args.output and not (args.detached or args.bundle):
        args.parser.error("give a path for the signed copy: -o OUT (or --detached, for a signature beside FILE)")
    if args.bundle and len(args.key or ()) != 1:
        args.parser.error("--bundle holds one signature, of FILE, with one --key")
    password = getpass("password of the private key: ").encode() if args.password else None
    if args.new_key:
        made = {"key": signing.new_key(args.new_key, password)}
        made |= {"private": args.new_key + signing.PRIVATE, "public": args.new_key + signing.PUBLIC}
        text = f"{made['key']}\n  {made['private']}: keep it secret\n  {made['public']}: needed to verify"
    elif args.bundle:
        made, text = _bundled(args, password)
    else:
        made, text = _signed(args, password)
    if args.json:
        emit(made)
    else:
        print(text)
    return 0


def _signed(args: argparse.Namespace, password: bytes | None) -> tuple[dict, str]:
    """Sign in this format's own way; returns what to print, as data and as text."""
    output = args.output or args.file + signatures.SUFFIX
    options = {"overwrite": args.force, "password": password}
    if args.detached:
        found = signing.sign_detached(args.file, args.key, output, **options)
    else:
        with ProgressBar("signing") as progress:
            found = signing.sign(args.file, args.key, output, **options, on_progress=progress.update)
    made = {"file": args.file, "output": output, "size": os.path.getsize(output)}
    made["signatures"] = [signature.key_id for signature in found]
    return made, f"{output}: signed by {', '.join(made['signatures'])}"


def _bundled(args: argparse.Namespace, password: bytes | None) -> tuple[dict, str]:
    """Write a bundle; returns what to print, as data and as text."""
    found = bundle.sign_bundle(args.file, args.key[0], args.output, overwrite=args.force, password=password)
    made = {"file": args.file, "output": found.path, "size": os.path.getsize(found.path)}
    made |= {"model": found.model, "key_sha256": found.key, "digests": dict(found.digests)}
    command = ["model_signing", "verify", "key", found.model, "--signature", found.path, "--public_key", "NAME.pub"]
    if os.path.isdir(found.model):  # where there may be other files
        command.append("--ignore_unsigned_files")
    return made, f"{found.path}: a bundle; to verify it: {shlex.join(command)}"
