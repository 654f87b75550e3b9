"""Errors carry numbers, and say them."""

import re
import tomllib

import pytest

from aibit_format import errors
from aibit_format.errors import AibitError, FormatError, Problem, told_by
from tests.support.paths import ROOT

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AibitError)]


def test_a_message_names_the_place_both_numbers_and_the_code():
    problem = Problem("AIB-E405", "plane length", "a.weight", "absmax", 81920, 262144, 262140)
    error = FormatError(problem).at("model.aibit")
    assert str(error) == (
        "model.aibit: tensor 'a.weight' plane 'absmax' at 81920: plane length, expected 262144, found 262140 [AIB-E405]"
    )
    assert (error.code, error.tensor, error.plane, error.offset) == ("AIB-E405", "a.weight", "absmax", 81920)
    assert (error.expected, error.found, error.path) == (262144, 262140, "model.aibit")


def test_the_first_of_several_problems_is_said_and_the_others_counted():
    problems = [Problem("AIB-E101", "too short", found=3), Problem("AIB-E108", "size"), Problem("AIB-E110", "x")]
    error = FormatError(problems)
    assert str(error) == "too short, found 3 [AIB-E101] (and 2 more)"
    assert [problem.code for problem in error.problems] == ["AIB-E101", "AIB-E108", "AIB-E110"]


def test_a_zero_is_a_number_and_a_long_value_is_cut():
    problem = Problem("AIB-E301", "count", offset=0, expected=0, found=0)
    assert str(problem) == "at 0: count, expected 0, found 0 [AIB-E301]"
    text = str(Problem("AIB-E301", "value", found="x" * 1000))
    assert len(text) < 150 and "..." in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_has_a_code(kind):
    assert kind.__doc__
    if kind is not FormatError:  # whose code is that of its first problem
        assert re.fullmatch(r"AIB-E\d{3}", kind.code)


def test_every_code_is_explained():
    rules = tomllib.loads((ROOT / "spec" / "rules.toml").read_text("utf-8"))
    codes = {code["code"] for code in rules["code"]}
    assert {kind.code for kind in KINDS if kind is not FormatError} <= codes


def test_what_other_libraries_say_is_one_line():
    assert told_by(ValueError("a field:\n    TypeError: \t of many\nlines")) == "a field: TypeError: of many lines"
    assert told_by(ValueError("x" * 1000), 10) == "x" * 10 + " ..."
