"""Parses arguments that several verbs take; argparse calls these functions."""

from __future__ import annotations

import argparse

from ..file.sharded_writer import parse_size


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
