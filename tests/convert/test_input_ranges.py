"""Ranges of a layer's inputs, for the scheme that stores how they are quantized."""

from __future__ import annotations

import json

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.calibrate.statistics import About, Inputs, Statistics
from aibit_format.convert.input_ranges import TOO_WIDE, UNSEEN, ranges
from aibit_format.convert.input_ranges import calibrated as calibrated_scheme
from aibit_format.errors import RecipeError
from aibit_format.schemes import parse
from tests.support import calibrated
from tests.support.command import run

ABOUT = About("A", "0" * 32, "0" * 32, 9, 1, 9)
FEW = {"samples": 3, "length": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory, a file of its statistics, and the statistics."""
    folder, text = calibrated.save("gpt2", tmp_path_factory.mktemp("ranges") / "hf")
    return folder, folder.parent / "s.safetensors", calibrate(folder, [text], folder.parent / "s.safetensors", **FEW)


@pytest.mark.parametrize("asymmetric", [0, 1])
def test_the_range_of_the_statistics_is_in_the_file(model, asymmetric, tmp_path):
    folder, path, found = model
    scheme = "int8-static" + ",asymmetric=1" * asymmetric
    report = aibit.convert(folder, tmp_path / "m.aibit", scheme, calibration=path)
    with aibit.open(report.path, verify="full") as file:
        names = [name for name in file if file.info(name).scheme.name == "int8-static"]
        assert names and set(names) <= found.inputs.keys()
        for name in names:
            low, high = found.inputs[name].extremes
            low, high = min(low, 0), max(high, 0)
            step = (high - low) / 255 if asymmetric else max(-low, high) / 127
            planes = file.planes(name)
            assert planes["input_scale"].tolist() == pytest.approx([step])
            if asymmetric:
                assert planes["input_zero_point"].tolist() == [round(-low / step) - 128]
        assert file.metadata["quantization.recipe"][0] == f"*={scheme}"
        assert file.metadata["calibration.statistics"] == found.digest


def test_without_statistics_it_says_what_to_give(model, tmp_path, capsys):
    folder = model[0]
    with pytest.raises(RecipeError, match=r"'transformer.h.0.*int8-static stores how inputs.*--calibrate FILE"):
        aibit.convert(folder, tmp_path / "m.aibit", "int8-static")
    aibit.convert(folder, tmp_path / "d.aibit", "int8-dynamic")
    how = ("--text", folder.parent / "text.txt", "--samples", 3, "--length", 24, "-o", tmp_path / "i.gguf")
    assert run("calibrate", folder, *how, capsys=capsys)[0] == 0
    with pytest.raises(RecipeError, match="an imatrix has sums of squares alone"):
        aibit.convert(folder, tmp_path / "m.aibit", "int8-static", calibration=tmp_path / "i.gguf")


def test_what_is_stored_already_needs_no_statistics(model, tmp_path):
    folder, path, _ = model
    aibit.convert(folder, tmp_path / "a.aibit", "int8-static", calibration=path)
    for scheme in (None, "keep", "int8-static"):
        report = aibit.convert(tmp_path / "a.aibit", tmp_path / "b.aibit", scheme, overwrite=True)
        assert sum(tensor.kept for tensor in report.tensors) == 8


def test_a_tensor_whose_inputs_nobody_saw_is_dynamic(model, tmp_path, capsys):
    folder, path, _ = model
    how = ("--scheme", "int8-static", "--tensor", "wpe=int8-static", "--calibrate", path, "--json")
    status, out, said = run("convert", folder, "-o", tmp_path / "m.aibit", *how, capsys=capsys)
    assert status == 0
    assert "aibit: 1 tensors are int8-dynamic instead: nothing was seen of their inputs" in said
    stored = {tensor["name"]: tensor["scheme"] for tensor in json.loads(out)["tensors"]}
    assert stored["transformer.wpe.weight"] == "int8-dynamic"
    assert stored["transformer.h.0.mlp.c_fc.weight"] == "int8-static"


def seen(high, spread=0.1):
    """Statistics of a layer whose inputs are normal of this standard deviation, but for one of ``high``."""
    shares = np.array([-3.09, -2.33, -1.645, -0.67, 0, 0.67, 1.645, 2.33, 3.09], np.float32)
    extremes = {"low": np.array([-0.4], np.float32), "high": np.array([high], np.float32)}
    found = Inputs(np.array([9]), np.ones((1, 4)), **extremes, percentiles=shares * np.float32(spread))
    return Statistics(ABOUT, {"w": found})


def test_a_layer_that_one_scale_would_round_away_is_dynamic():
    static = parse("int8-static")
    widest = 0.5 * 0.1 * 127
    assert calibrated_scheme(static, seen(widest * 0.99), ["w"])[1] == ""
    assert calibrated_scheme(static, seen(widest * 1.01), ["v", "w"]) == (parse("int8-dynamic"), TOO_WIDE)
    scheme, why = calibrated_scheme(static, seen(widest * 9), ["w"], is_named=True)
    assert scheme == static and why == "" and scheme.input_steps().tolist() == pytest.approx([0.45])
    halved = parse("int8-static,asymmetric=1")  # which has twice the codes for what is on one side
    assert calibrated_scheme(halved, seen(widest * 1.5), ["w"])[1] == ""
    assert calibrated_scheme(static, seen(0.5), ["v"]) == (parse("int8-dynamic"), UNSEEN)


def test_experts_have_their_own_range_and_those_without_tokens_that_of_all():
    inputs = Inputs(
        np.array([3, 0, 1]), np.ones((3, 4)), low=np.array([-1, 0, -4], np.float32),
        high=np.array([2, 0, 1], np.float32), experts=True,
    )  # fmt: skip
    low, high = ranges(inputs)
    assert low.tolist() == [-1, -4, -4] and high.tolist() == [2, 2, 1]
    assert ranges(Inputs(np.array([1]), np.ones((1, 4)))) is None
