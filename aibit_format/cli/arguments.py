"""Parses arguments that several verbs take; argparse calls these functions, but for ``text`` and ``local``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import LoadError
from ..file.sharded_writer import parse_size
from ..io import hub
from .output import ProgressBar
from .silence import quiet_hub

# Both the expression and the scheme may contain "=": (?=a)b=nf4,block_size=128.
_RULE = re.compile(r"(.+?)=([^=,]+(?:,[^=,]+(?:=[^=,]+)?)*)", re.DOTALL)


def size(text: str) -> int:
    """Parse a number of bytes: ``5GB``, ``500MB``, ``4GiB``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def rule(text: str) -> tuple[str, str]:
    """Parse ``REGEX=SCHEME``."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=SCHEME")
    return found[1], found[2]


def local(path: str) -> str:
    """Return the path of a model, which is downloaded first if it is named on the hub; see ``io.hub``."""
    quiet_hub()
    with ProgressBar("downloading") as progress:
        return hub.local(path, on_progress=progress.update)


def text(path: str) -> str:
    """Read a UTF-8 text file.

    Raises:
        LoadError: it holds other bytes; the message says where.
    """
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: no UTF-8 at byte {error.start}") from error
