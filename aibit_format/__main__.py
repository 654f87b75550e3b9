"""Runs the command line: ``python -m aibit_format``."""

from .cli import entry

entry()
