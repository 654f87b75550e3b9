"""Runs ``aibit verify``: checks files, and prints what was checked and what was not.

With ``--canonical`` it also lists what is valid, but in another form than this package writes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..errors import FormatError
from ..file import sharded_reader
from ..file.canonical import other_forms
from . import FAILED, OK, status_of
from .output import emit, printable, size

_NO_SIGNATURE = "where the file came from: checksums find damage, not forgery"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument(
        "--level", choices=["structure", "full"], default="full",
        help="structure: header, front matter and every table; full: every byte as well (default)",
    )  # fmt: skip
    parser.add_argument(
        "--key", metavar="PUB", action="append",
        help="require a signature by this Ed25519 public key, a PEM file or a folder of *.pub (or by one of several)",
    )  # fmt: skip
    parser.add_argument("--signature", metavar="SIG", help="file of the signature, if not in FILE or FILE.sig")
    parser.add_argument(
        "--canonical", action="store_true",
        help="also list what is valid, but in another form than this program writes; the status is 1 if there is any",
    )  # fmt: skip
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Check each file and print the results.

    Returns 3 if a file is invalid, 1 if one cannot be read or, with ``--canonical``, has another form.
    """
    if args.signature and (not args.key or len(args.files) > 1):
        args.parser.error("--signature needs exactly one FILE, and says nothing without --key")
    if args.canonical and args.level != "full":
        args.parser.error("--canonical looks at every byte: it needs --level full")
    results, status = [], 0
    for path in args.files:
        try:
            with sharded_reader.open(path, args.level) as file:
                if args.signature and len(file.parts) > 1:
                    args.parser.error(f"--signature is for one file, but {path} has {len(file.parts)}")
                for part in file.parts if args.key else ():
                    part.check_signature(args.key, args.signature)
                claimed = sorted({signature.key_id for part in file.parts for signature in part.signatures})
                result = {"file": path, "valid": True, **asdict(file.verified()), "signatures": claimed}
                if args.canonical:
                    result["other_forms"] = [asdict(form) for form in other_forms(file)]
                    status = max(status, FAILED if result["other_forms"] else OK)
                results.append(result)
        except FormatError as error:
            status = max(status, status_of(error))
            where = f"{error.path}: " if error.path and error.path != path else ""  # a shard of the file
            problems = [{"code": p.code, "message": f"{where}{p}"} for p in error.problems]
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
    shards = f"{result['shards']} shards: " if result["shards"] > 1 else ""
    tables = shards + (
        f"header, front matter, {result['tensors']} tensors, {result['planes']} planes, {result['documents']} documents"
    )
    if result["level"] == "full":
        checked = f"{tables}, {result['leaves']} leaf digests over all {size(result['bytes'])}, padding, scales"
        missing = []
    else:
        checked, missing = tables, ["the checksums, padding and values of documents and planes"]
    missing += [f"the values of {count} tensors: {reason}" for reason, count in result["unknown"].items()]
    if result["signed_by"]:
        checked += f", the signature by {result['signed_by']}"
        checked += " over all bytes" if result["level"] == "full" else ""
    else:
        missing.append(_NO_SIGNATURE)
        missing += [f"what claims to be a signature by {key} (use --key)" for key in result["signatures"]]
    lines = [f"{path}: valid", f"  checked: {checked}", f"  root {result['root']}"]
    forms = [
        f"  not as this program writes it: {_place(form, path)}{form['what']}" for form in result.get("other_forms", ())
    ]
    if "other_forms" in result and not forms:
        forms = ["  canonical: nothing would have been written otherwise"]
    return "\n".join(lines[:2] + [f"  not checked: {'; '.join(missing)}"] * bool(missing) + lines[2:] + forms)


def _place(form: dict, path: str) -> str:
    shard = f"{form['file']}: " if form["file"] != path else ""
    return shard + (f"tensor {printable(form['tensor'])}, plane {form['plane']}: " if form["tensor"] else "")
