"""Convert a model for tests of the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import aibit_format as aibit
from tests.support import architectures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small checkpoint ``hf`` and its file ``m.aibit``."""
    folder = tmp_path_factory.mktemp("cli")
    architectures.save("llama-tied", folder / "hf", torch.float16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    return folder


def shell(*arguments, **options):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "aibit_format", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)
