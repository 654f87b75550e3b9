"""The validator finds all problems of a file's tables, and no more of a kind than can be read."""

import dataclasses

import pytest

from aibit_format.container import validate
from aibit_format.file.reader import File
from tests.support.paths import FIXTURES
from tools.fixtures import file_builder
from tools.fixtures.file_builder import put


def tables(data):
    return File(data).tables


@pytest.mark.parametrize("path", sorted((FIXTURES / "container").glob("*.aibit")), ids=lambda path: path.stem)
def test_tables_of_a_good_file_have_no_problem(path):
    data = path.read_bytes()
    assert validate.check(tables(data), len(data)) == []


def test_problems_of_several_kinds_are_all_found():
    data = file_builder.good()
    info = tables(data)
    table = info.tensor_table.copy()
    table["flags"][0], table["rank"][1] = 16, 9
    problems = validate.check(dataclasses.replace(info, tensor_table=table), len(data))
    found = {(problem.code, problem.tensor) for problem in problems}
    assert found >= {("AIB-E402", "quant"), ("AIB-E415", "first"), ("AIB-E310", None)}


def test_the_number_of_problems_of_one_kind_is_bounded():
    tensors = [(f"t{i:03}", "f32", "f32", (2,), None) for i in range(200)]
    good = file_builder.good(tensors, {}, {})
    info = tables(good)
    table = info.tensor_table.copy()
    table["flags"] = 16
    problems = validate.check(dataclasses.replace(info, tensor_table=table), len(good))
    assert {problem.code for problem in problems} == {"AIB-E415"} and len(problems) == validate.EACH
    assert problems[0].tensor == "t000"


def test_a_problem_of_the_tables_refuses_the_file():
    with pytest.raises(Exception, match=r"AIB-E415"):
        File(put("tensor", 0, flags=16)(file_builder.good()))
