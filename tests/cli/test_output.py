"""The command line as a person uses it: results, messages, exit status."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tests.support.command_models import model as model
from tests.support.command_models import shell


def test_output_that_nobody_reads_is_no_error(model):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "aibit_format", "inspect", str(model / "m.aibit"), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 0


def test_verbose_shows_the_traceback(tmp_path):
    path = pathlib.Path(tmp_path, "x.aibit")
    path.write_text("nothing of the kind, but long enough to be looked at")
    assert "Traceback" not in shell("inspect", path).stderr
    assert "Traceback" in shell("inspect", path, "-v").stderr
