"""The state of a calibration: what is named in it is there, and nothing of another one is used."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from aibit_format.calibrate.blocks import Output
from aibit_format.calibrate.statistics import Inputs
from aibit_format.calibrate.unfinished import Unfinished
from aibit_format.errors import SourceError, WriteError

CPU = torch.device("cpu")


def inputs(number):
    return Inputs(np.array([number]), np.full((1, 2), 1.0 * number))


def output(number):
    return Output({"tensor": True}, [torch.full((1, 3), float(number), dtype=torch.bfloat16)])


def finish(state, block, number):
    with state.outputs(output(number), 2) as writer:
        writer.write(0, output(number))
        writer.write(1, output(number + 10))
    state.finish(block, "layers", {f"{block}.weight": inputs(number)}, writer)


def test_the_next_run_goes_on_after_the_last_block(tmp_path):
    state = Unfinished(str(tmp_path / "s"), "key", CPU)
    finish(state, "layers.0", 1)
    finish(state, "layers.1", 2)
    assert sorted(os.listdir(tmp_path / "s")) == [
        "inputs-00000.safetensors", "inputs-00001.safetensors", "outputs-00001.safetensors", "state.json",
    ]  # fmt: skip
    again = Unfinished(str(tmp_path / "s"), "key", CPU)
    assert again.done == ["layers.0", "layers.1"]
    assert [again.latest("layers", sample).value[0, 0].item() for sample in (0, 1)] == [2, 12]
    assert {name: each.counts.tolist() for name, each in again.inputs().items()} == {
        "layers.0.weight": [1], "layers.1.weight": [2],
    }  # fmt: skip
    again.remove()
    assert not (tmp_path / "s").exists()


def test_weights_of_a_block_share_a_hessian_in_the_next_run_too(tmp_path):
    state, hessian = Unfinished(str(tmp_path / "s"), "key", CPU), np.eye(2, dtype=np.float32)[None]
    same = {name: replace(inputs(1), hessian=hessian) for name in ("q", "k")}
    state.finish("layers.0", "layers", same | {"o": replace(inputs(1), hessian=hessian * 2)}, None)
    found = Unfinished(str(tmp_path / "s"), "key", CPU).inputs()
    assert found["q"].hessian is found["k"].hessian is not found["o"].hessian
    assert (found["k"].hessian == hessian).all() and (found["o"].hessian == 2 * hessian).all()


@pytest.mark.parametrize("state", [json.dumps({"key": "another", "done": ["x"], "latest": {}}), "no JSON", "[]"])
def test_a_state_of_something_else_is_removed(state, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "state.json").write_text(state)
    (folder / "inputs-00000.safetensors").write_text("old")
    assert Unfinished(str(folder), "key", CPU).done == []
    assert os.listdir(folder) == ["state.json"]


@pytest.mark.parametrize("left", [[".aibit-0123456789abcdef.partial"], ["inputs-00000.safetensors"]])
def test_what_a_killed_run_leaves_without_a_state_is_removed(left, tmp_path):
    """It was killed before it had a state, or while it removed its files."""
    folder = tmp_path / "s"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("left")
    assert Unfinished(str(folder), "key", CPU).done == []
    assert os.listdir(folder) == ["state.json"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(WriteError, match="in the way"):
        Unfinished(str(tmp_path), "key", CPU)
    assert (tmp_path / "mine").read_text() == "mine"


def test_samples_return_the_same_things(tmp_path):
    state = Unfinished(str(tmp_path / "s"), "key", CPU)
    with pytest.raises(SourceError, match="other things for sample 1"), state.outputs(output(1), 2) as writer:
        writer.write(0, output(1))
        writer.write(1, Output({"tuple": [{"tensor": True}]}, [torch.ones(1, 3)]))
