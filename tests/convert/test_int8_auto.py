"""``int8-auto`` stores each layer around zero or with a zero point, by the score of its inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.convert.int8_auto import Choice, Int8Auto, step
from aibit_format.errors import RecipeError, SchemeError, SourceError
from tests.support import calibrated

FEW = {"samples": 3, "length": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory, a file of its statistics, and the statistics."""
    folder, path = calibrated.save("gpt2", tmp_path_factory.mktemp("auto") / "hf")
    return folder, folder.parent / "s.safetensors", calibrate(folder, [path], folder.parent / "s.safetensors", **FEW)


def test_options(model):
    assert Int8Auto.parse("int8-auto").text == "int8-auto"
    assert Int8Auto.parse("int8-auto,threshold=0.70,group=tensor").text == "int8-auto,group=tensor,threshold=0.7"
    for wrong in ("threshold=2", "threshold=x", "group=3", "size=1"):
        with pytest.raises(SchemeError):
            Int8Auto.parse(f"int8-auto,{wrong}")


def test_the_score_chooses(model):
    folder, path, found = model
    scores = {name: each.score() for name, each in found.inputs.items() if name.startswith("transformer.h")}
    threshold = float(np.median(list(scores.values())))
    report = aibit.convert(
        folder, folder.parent / "m.aibit", f"int8-auto,threshold={threshold:g}", calibration=path, overwrite=True
    )
    modes = {choice.name: choice.mode for choice in report.choices}
    assert modes == {n: "symmetric" if s > float(f"{threshold:g}") else "asymmetric" for n, s in scores.items()}
    assert set(modes.values()) == {"symmetric", "asymmetric"}
    stored = {tensor.name: tensor.scheme for tensor in report.tensors}
    assert all(stored[n] == {"symmetric": "int8-absmax", "asymmetric": "int8-zp"}[mode] for n, mode in modes.items())
    with aibit.open(report.path, verify="full") as file:
        check(file, report, found)


def check(file, report, found):
    """All that was chosen is in the metadata, and the largest scales are those of the planes."""
    values, names = file.metadata, list(file)
    assert [names[i] for i in values["quantization.auto.tensor"]] == [choice.name for choice in report.choices]
    for key in ("mean", "std", "score", "mode", "scale", "zero_point"):
        assert list(values[f"quantization.auto.{key}"]) == [getattr(choice, key) for choice in report.choices]
    assert values["calibration.statistics"] == found.digest == report.statistics
    assert values["calibration.tokens"] == 72 and values["calibration.text"] == found.about.text
    for choice in report.choices:
        planes = file.planes(choice.name)
        assert choice.scale == planes["scale"].max()
        if choice.mode == "asymmetric":
            assert choice.zero_point == planes["zero_point"].flat[planes["scale"].argmax()]
        assert choice.score == pytest.approx(math.exp(-abs(choice.mean) / (choice.std + 1e-8)))


def test_shards_and_one_file_say_the_same(model):
    folder, path, found = model
    report = aibit.convert(
        folder, folder.parent / "s.aibit", "int8-auto,threshold=0.97", calibration=path, max_shard_size=60_000,
        overwrite=True,
    )  # fmt: skip
    assert len(report.files) > 1
    with aibit.open(report.path) as file:
        check(file, report, found)


def test_the_same_statistics_give_the_same_bytes(model):
    folder, path, found = model
    first, second, third = (folder.parent / f"{i}.aibit" for i in range(3))
    aibit.convert(folder, first, "int8-auto", calibration=path, jobs=1, overwrite=True)
    aibit.convert(folder, second, "int8-auto", calibration=found, jobs=3, overwrite=True)
    assert first.read_bytes() == second.read_bytes()
    aibit.convert(folder, third, "int8-auto", calibration=replace(found, about=replace(found.about, threshold=0.99)))
    assert first.read_bytes() != third.read_bytes()


def test_a_rule_may_name_it(model, tmp_path):
    folder, path, _ = model
    report = aibit.convert(folder, tmp_path / "m.aibit", "int8", {r"c_fc\.weight": "int8-auto"}, calibration=path)
    assert [choice.name for choice in report.choices] == [f"transformer.h.{i}.mlp.c_fc.weight" for i in (0, 1)]


def test_statistics_of_a_text_are_taken_on_the_way(model, tmp_path):
    folder, _, _ = model
    (tmp_path / "t.txt").write_text(calibrated.TEXT * 40)
    report = aibit.convert(folder, tmp_path / "m.aibit", "int8-auto", calibration=tmp_path / "t.txt")
    with aibit.open(report.path) as file:
        assert file.metadata["calibration.tokens"] == 100 * 64 and len(report.choices) == 8


def test_without_statistics_it_is_refused(model, tmp_path):
    folder, _, found = model
    with pytest.raises(RecipeError, match=r"int8-auto chooses by statistics.*--calibrate"):
        aibit.convert(folder, tmp_path / "m.aibit", "int8-auto")
    alone = {name: replace(each, sum=None) for name, each in found.inputs.items()}
    with pytest.raises(RecipeError, match="an imatrix has sums of squares alone"):
        aibit.convert(folder, tmp_path / "m.aibit", "int8-auto", calibration=replace(found, inputs=alone))


def test_statistics_of_another_model_are_refused(model, tmp_path):
    folder, _ = calibrated.save("llama-tied", tmp_path / "hf")
    with pytest.raises(SourceError, match="of another model"):
        aibit.convert(folder, tmp_path / "m.aibit", "int8-auto", calibration=model[1])


def test_a_layer_without_a_score_gets_a_zero_point(model):
    assert Int8Auto().told(model[2]).choice(["other"]) == Choice(0.0, 0.0, 0.0, "asymmetric")


def test_the_largest_scale_and_its_zero_point():
    assert step(np.array([[1.0], [3.0]], "f"), np.array([[4], [5]], "B")) == (3.0, 5.0)
    assert step(np.array([2.0], "f"), None) == (2.0, 0.0) and step(np.zeros((0, 1), "f"), None) == (0.0, 0.0)
