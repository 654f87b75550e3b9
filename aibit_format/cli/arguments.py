"""Arguments that several verbs take, read from text."""

from __future__ import annotations

import argparse

from ..file.sharded_writer import parse_size


def size(text: str) -> int:
    """A number of bytes: ``5GB``, ``500MB``, ``4GiB``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
