"""``python -m aibit_format``: the command line."""

from .cli import entry

entry()
