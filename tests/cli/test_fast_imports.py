"""A start without what running a model never uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import aibit_format as aibit


@pytest.mark.parametrize("scheme", ["int8", "nf4", "int8-absmax", "gguf:q8_0"])
def test_a_lean_start_gives_the_same_text(scheme, fixtures, tmp_path):
    """Whole processes: with stand-ins for what running a model does not use, and with the real modules."""
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit", scheme=scheme)
    command = [sys.executable, "-c", _RUN, str(tmp_path / "m.aibit")]
    texts, modules = [], []
    for setting in ({}, {"AIBIT_FULL_IMPORTS": "1"}):
        done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True, check=True)
        text, count = done.stdout.rsplit("\n", 2)[0], int(done.stdout.rsplit("\n", 2)[1])
        texts.append(text)
        modules.append(count)
    assert texts[0] == texts[1] and texts[0].startswith("If the")
    assert modules[0] < 0.75 * modules[1]


def test_what_was_left_out_can_be_imported_afterwards():
    subprocess.run([sys.executable, "-c", _UNDONE], env=os.environ | {"AIBIT_FULL_IMPORTS": ""}, check=True)


_UNDONE = """
from aibit_format.cli import fast_imports
undo = fast_imports.start()
import torch
import torch.distributed.tensor._dispatch as left_out
assert left_out.OpDispatcher() and not hasattr(left_out, "__file__")
undo()
from torch.distributed.tensor import DTensor
import torch.distributed.tensor._dispatch as imported
assert issubclass(DTensor, torch.Tensor) and imported.__file__
"""
_RUN = """
import sys
from aibit_format.cli import main
assert main(["run", sys.argv[1], "If the", "-n", "12"]) == 0
print("\\n" + str(len(sys.modules)))
"""
