"""Run programs that are to be killed, or that meet faults."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.support.paths import ROOT


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def python(program, *arguments, **options):
    """A Python that runs ``program``; what it prints, or the test's failure with what it complained of."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment(), capture_output=True, text=True, timeout=1200, check=False, **options,
    )  # fmt: skip
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return result.stdout
