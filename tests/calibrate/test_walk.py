"""A walk through a model calls its progress once a sample and block, and says when it had to hold all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format.calibrate.statistics import About
from aibit_format.calibrate.walk import Walk
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from tests.support import architectures

ABOUT = About("x", "0" * 32, "1" * 32, 10, 2, 5)


def walk(name, folder):
    architectures.save(name, folder / "hf")
    source = open_source(folder / "hf")
    ids = np.random.default_rng(0).integers(0, 50, (2, 5))
    return Walk(source, meta_model_of(source), ids, ABOUT, lambda _: False, torch.device("cpu"), "key")


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_blocks_are_walked_one_by_one(name, tmp_path):
    steps = []
    found = walk(name, tmp_path).run(str(tmp_path / "state"), lambda *step: steps.append(step))
    blocks = len({step[2] for step in steps}) - 1
    assert found.about.streamed and blocks >= 2
    assert [done for done, _, _ in steps] == list(range(1, 2 * (blocks + 1) + 1))
    assert {total for _, total, _ in steps} == {2 * (blocks + 1)} and steps[-1][2] == "outside"
    assert all(each.tokens == 10 for each in found.inputs.values())


def test_a_model_is_as_it_was_afterwards(tmp_path):
    walked = walk("llama-tied", tmp_path)
    walked.run(str(tmp_path / "state"))
    module = walked._model.module
    assert all(value.device.type == "meta" for value in module.parameters())
    assert not any(each._forward_pre_hooks or "forward" in vars(each) for each in module.modules())
