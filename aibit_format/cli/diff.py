"""Runs ``aibit diff``: prints the differences between two models; the exit status is 1 if there are any."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..file.diff import Difference, diff
from . import FAILED, OK
from .output import emit, printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("a", metavar="A", help="a file, or the first shard of a model")
    parser.add_argument("b", metavar="B", help="the file, or first shard, to compare it with")


def run(args: argparse.Namespace) -> int:
    """Compare two models, and print the differences."""
    found = diff(args.a, args.b)
    if args.json:
        emit({"same": not found, "differences": [asdict(difference) for difference in found]})
    else:
        for difference in found:
            print(_line(difference))
        print(f"{len(found)} differences" if found else "the same metadata, documents and tensors")
    return FAILED if found else OK


def _line(found: Difference) -> str:
    name = printable(found.name)
    if found.kind == "values":
        relative, largest = ("not finite" if v is None else f"{v:.3g}" for v in (found.a, found.b))
        return f"values of {name}: relative rms error {relative}, largest {largest}"
    if found.kind == "planes":
        return f"planes of {name}: other bytes in {', '.join(found.a)}"
    return f"{found.kind} {name}: {_brief(found.a)} -> {_brief(found.b)}"


def _brief(value: Any) -> str:
    text = "none" if value is None else printable(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
