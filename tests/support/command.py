"""One command of ``aibit``, in this process."""

from __future__ import annotations

from aibit_format.cli import main


def run(*arguments, capsys):
    """(status, stdout, stderr)."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()
