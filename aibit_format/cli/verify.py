"""``aibit verify FILE``: says what was checked, and what was not."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..errors import FormatError
from ..reader import File
from . import status_of
from .output import emit, size

_NO_SIGNATURE = "where the file came from: checksums find damage, not forgery"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument(
        "--level", choices=["structure", "full"], default="full",
        help="structure: header, front matter and every table; full: every byte as well (default)",
    )  # fmt: skip
    parser.add_argument(
        "--key", metavar="PUB", action="append",
        help="demand a signature by this Ed25519 public key, a PEM file or a folder of *.pub (or by one of several)",
    )  # fmt: skip
    parser.add_argument("--signature", metavar="SIG", help="where it is, if neither in FILE nor in FILE.sig")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Check each file; 3 if one is not valid, 1 if one cannot be read."""
    if args.signature and (not args.key or len(args.files) > 1):
        args.parser.error("--signature is of one FILE, and says nothing without --key")
    results, status = [], 0
    for path in args.files:
        try:
            with File(path, args.level) as file:
                if args.key:
                    file.check_signature(args.key, args.signature)
                claimed = [signature.key_id for signature in file.signatures]
                results.append({"file": path, "valid": True, **asdict(file.verified()), "signatures": claimed})
        except FormatError as error:
            status = max(status, status_of(error))
            problems = [{"code": p.code, "message": str(p)} for p in error.problems]
            results.append({"file": path, "valid": False, "problems": problems})
    if args.json:
        emit(results)
        return status
    for result in results:
        print(_text(result))
    return status


def _text(result: dict) -> str:
    path = result["file"]
    if not result["valid"]:
        return "\n".join(f"{path}: NOT VALID: {problem['message']}" for problem in result["problems"])
    tables = (
        f"header, front matter, {result['tensors']} tensors, {result['planes']} planes, {result['documents']} documents"
    )
    if result["level"] == "full":
        checked = f"{tables}, {result['leaves']} leaf digests over all {size(result['bytes'])}, padding, scales"
        missing = []
    else:
        checked, missing = tables, ["the checksums, padding and values of documents and planes"]
    if result["signed_by"]:
        checked += f", the signature by {result['signed_by']} over all bytes"
    else:
        missing.append(_NO_SIGNATURE)
        missing += [f"what claims to be a signature by {key}" for key in result["signatures"]]
    lines = [f"{path}: valid", f"  checked: {checked}", f"  root {result['root']}"]
    return "\n".join(lines[:2] + [f"  not checked: {'; '.join(missing)}"] * bool(missing) + lines[2:])
