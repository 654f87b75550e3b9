"""Convert a model to be edited and compared."""

from __future__ import annotations

import pytest
import torch

import aibit_format as aibit
from aibit_format.file import rewrite, sharded_reader
from aibit_format.file.diff import diff
from tests.support import architectures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with ``m.aibit``, a tied Llama in int8, ``nf4.aibit``, and its shards."""
    folder = tmp_path_factory.mktemp("edit")
    architectures.save("llama-tied", folder / "hf", torch.float16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    aibit.convert(folder / "hf", folder / "nf4.aibit", scheme="nf4")
    rewrite.split(folder / "m.aibit", folder / "s.aibit", 40_000)
    return folder


def compared(a, b):
    with sharded_reader.open(a, "touched") as x, sharded_reader.open(b, "touched") as y:
        return list(diff(x, y))
