"""Convert a model, and cut it into shards."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import torch

import aibit_format as aibit
from aibit_format.file import rewrite
from tests.support import architectures

SIZE = 33_000  # of a shard of the model below: it makes four


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with ``m.aibit``, of a tied Llama, and its shards ``s-0000x-of-0000n.aibit``; and ``other`` ones."""
    folder = tmp_path_factory.mktemp("shards")
    for name, seed in (("m", 0), ("other", 1)):
        architectures.save("llama-tied", folder / f"hf-{name}", torch.float16, seed=seed)
        aibit.convert(folder / f"hf-{name}", folder / f"{name}.aibit")
    rewrite.split(folder / "m.aibit", folder / "s.aibit", SIZE)
    rewrite.split(folder / "other.aibit", folder / "other-s.aibit", SIZE)
    return folder


@pytest.fixture
def paths(model, tmp_path):
    """Copies of the shards, to be broken."""
    names = sorted(model.glob("s-*.aibit"))
    assert len(names) == 4
    return [pathlib.Path(shutil.copy(name, tmp_path)) for name in names]
