"""``aibit verify FILE``: says what was checked, and what was not."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .. import shards
from ..errors import FormatError
from . import status_of
from .output import emit, size

_NOT_CHECKED = "where the file came from: checksums find damage, not forgery"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument(
        "--level", choices=["structure", "full"], default="full",
        help="structure: header, front matter and every table; full: every byte as well (default)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check each file; 3 if one is not valid, 1 if one cannot be read."""
    results, status = [], 0
    for path in args.files:
        try:
            with shards.open(path, args.level) as file:
                results.append({"file": path, "valid": True, **asdict(file.verified())})
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
        missing = _NOT_CHECKED
    else:
        checked, missing = tables, f"the bytes of documents and planes; {_NOT_CHECKED}"
    return f"{path}: valid\n  checked: {checked}\n  not checked: {missing}\n  root {result['root']}"
