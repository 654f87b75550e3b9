"""Parameters that follow from one tensor's values, through everything that handles tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.container import validate
from aibit_format.file import slice_rows
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write
from aibit_format.schemes import make, parse
from tools.fixtures import file_builder
from tools.fixtures.file_builder import put

COUNTS = (0, 1, 3)


def values(outliers: int) -> np.ndarray:
    """Eight rows of 64, of which the first few stand out."""
    found = np.random.default_rng(outliers).standard_normal((8, 64)).astype(np.float32)
    found[:outliers, 5] = 1000
    return found


@pytest.fixture
def model(tmp_path):
    """A file of int8-outlier tensors with different numbers of outliers, and an alias of the last."""
    tensors = {}
    for count in COUNTS:
        scheme = parse("int8-outlier,threshold=7").fitted(values(count), "f32")
        tensors[Tensor(f"w{count}", (8, 64), "f32", scheme)] = scheme.encode(values(count), "f32")
    tensors[Tensor("tied", (8, 64), "f32", scheme, "w3")] = {}
    write(tmp_path / "m.aibit", tensors)
    return tmp_path / "m.aibit"


def test_tensors_of_different_numbers_share_an_entry_of_the_scheme_table(model):
    with aibit.open(model, verify="full") as file:
        tables = file.tables
        assert tables.scheme_names == ["int8-outlier"] and tables.scheme_table["version"].tolist() == [2]
        assert tables.scheme_table["parameters"].tolist() == [[7, 0, 0, 0, 0, 0]]
        assert tables.tensor_table["parameters"].tolist() == [[0, 0], [1, 0], [3, 0], [3, 0]]
        for count in COUNTS:
            info = file.info(f"w{count}")
            assert (info.scheme.outliers, info.scheme.tensor_parameters) == (count, (count,))
            assert info.scheme.text == "int8-outlier,threshold=7" + (f",outliers={count}" if count else "")
            assert info.planes[2].shape == (count,) and info.planes[3].shape == (count, 64)
            assert np.abs(file.dequantize(info.name) - values(count)).max() < 0.05
        assert file.info("tied").scheme == file.info("w3").scheme


def test_tensors_of_one_shape_and_different_numbers_are_checked_each(model):
    """What is equal in a record means equal planes, and parameters are among that."""
    data = model.read_bytes()
    info = File(data).tables
    assert validate.check(info, len(data)) == []
    for at, code in ((0, "AIB-E405"), (1, "AIB-E405"), (3, "AIB-E411")):
        changed = put("tensor", at, parameters=[2, 0])(data)
        assert {problem.code for problem in refused(changed)} == {code}
    assert {problem.code for problem in refused(put("tensor", 1, parameters=[9, 0])(data))} == {"AIB-E413"}
    (problem,) = refused(put("tensor", 1, parameters=[1, 5])(data))
    assert problem.code == "AIB-E415" and problem.tensor == "w1" and "[1, 5]" in str(problem)


def refused(data: bytes):
    with pytest.raises(aibit.FormatError) as error:
        File(data)
    return error.value.problems


def test_parameters_beside_a_scheme_that_is_not_there_are_no_second_error(model):
    data = put("tensor", 1, parameters=[1, 5], scheme=9)(model.read_bytes())
    assert refused(data)[0].code == "AIB-E416"
    data = put("tensor", 1, parameters=[1, 5])(put("scheme", 0, parameters=[0] * 6)(model.read_bytes()))
    assert refused(data)[0].code == "AIB-E407"


def test_they_are_kept_when_a_model_is_cut_joined_edited_and_converted(model, tmp_path):
    first = aibit.split(model, tmp_path / "s.aibit", 600)[0]
    aibit.merge(first, tmp_path / "whole.aibit")
    assert aibit.diff(tmp_path / "whole.aibit", model) == []
    aibit.edit(model, tmp_path / "edited.aibit")
    assert (tmp_path / "edited.aibit").read_bytes() == model.read_bytes()
    for rules in ({}, {"w": "int8-outlier,threshold=7", "tied": "keep"}):  # what has this scheme already stays as it is
        aibit.convert(model, tmp_path / "again.aibit", tensors=rules, overwrite=True)
        assert {found.kind for found in aibit.diff(model, tmp_path / "again.aibit")} == {"metadata"}


def test_inspect_groups_tensors_by_the_scheme_of_the_table(model, capsys):
    assert main(["inspect", str(model)]) == 0
    assert "4 tensors: 3 int8-outlier,threshold=7 (" in capsys.readouterr().out
    assert main(["inspect", str(model), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert [row.get("parameters") for row in rows] == [None, [1], [3], [3]]
    assert {row["scheme"] for row in rows} == {"int8-outlier,threshold=7"}


def test_other_parameters_are_a_difference(model, tmp_path):
    with aibit.open(model) as file:
        tensors = {}
        for name in ("w0", "w1", "w3"):
            number = {"w0": 1}.get(name, int(name[1]))
            scheme = parse("int8-outlier,threshold=7").fitted(values(number), "f32")
            tensors[Tensor(name, (8, 64), "f32", scheme)] = scheme.encode(values(number), "f32")
        tensors[Tensor("tied", (8, 64), "f32", scheme, "w3")] = {}
        write(tmp_path / "other.aibit", tensors)
        found = aibit.diff(file, tmp_path / "other.aibit")
    assert [(each.kind, each.name) for each in found] == [("parameters", "w0"), ("values", "w0")]
    assert (found[0].a, found[0].b) == ((0,), (1,))


def test_those_of_an_unknown_scheme_are_compared_and_kept(model, tmp_path):
    newer = put("scheme", 0, version=3)(model.read_bytes())
    other = put("tensor", 1, parameters=[1, 5])(newer)
    for name, data in (("a", newer), ("b", other)):
        (tmp_path / name).write_bytes(data)
    with aibit.open(tmp_path / "b", verify="full") as file:
        assert file.info("w1").scheme.tensor_parameters == (1, 5)
    assert [(each.kind, each.name) for each in aibit.diff(tmp_path / "a", tmp_path / "b")] == [("parameters", "w1")]
    first = aibit.split(tmp_path / "b", tmp_path / "s.aibit", 600)[0]
    aibit.merge(first, tmp_path / "c")
    assert aibit.diff(tmp_path / "c", tmp_path / "b") == []


def test_rows_are_cut_with_a_number_of_their_own(model):
    with aibit.open(model, verify="touched") as file:
        info = file.info("w3")
        part, planes = slice_rows.slice_rows(file, info, slice(2, 4))
        assert part.scheme.tensor_parameters == (1,) and planes["outlier_index"].tolist() == [0]
        assert np.array_equal(part.scheme.decode(planes, (2, 64), "f32"), file.dequantize("w3")[2:4])


def test_the_first_version_is_read_written_again_and_no_second(tmp_path):
    tensors = {}
    for count in COUNTS:
        scheme = parse("int8-outlier,version=1,threshold=7").fitted(values(count), "f32")
        tensors[Tensor(f"w{count}", (8, 64), "f32", scheme)] = scheme.encode(values(count), "f32")
    write(tmp_path / "one.aibit", tensors)
    with aibit.open(tmp_path / "one.aibit", verify="full") as file:
        assert file.tables.scheme_table["version"].tolist() == [1, 1, 1]
        assert not file.tables.tensor_table["parameters"].any()
        newest = {name: file.info(name).scheme for name in file}
        assert [scheme.outliers for scheme in newest.values()] == list(COUNTS)
        for count in COUNTS:
            second = make("int8-outlier", 2, (7,)).for_tensor((count,))
            planes = file.planes(f"w{count}")
            assert np.array_equal(second.decode(planes, (8, 64), "f32"), file.dequantize(f"w{count}"))
    aibit.edit(tmp_path / "one.aibit", tmp_path / "same.aibit")
    assert (tmp_path / "one.aibit").read_bytes() == (tmp_path / "same.aibit").read_bytes()


def test_all_other_schemes_have_none():
    data = file_builder.good()
    for at in range(len(file_builder.TENSORS)):
        assert refused(put("tensor", at, parameters=[0, 1])(data))[0].code == "AIB-E415"
