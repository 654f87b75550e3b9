"""Long work reports how far it is."""

import inspect
from typing import get_args

import aibit_format as aibit
from aibit_format.file import rewrite
from aibit_format.file.progress import Progress


def test_calls_are_of_the_declared_types_and_reach_the_whole(fixtures, tmp_path):
    arguments, _ = get_args(Progress)
    calls = []
    rewrite.merge(
        fixtures / "container" / "sharded-00001-of-00003.aibit", tmp_path / "m.aibit",
        on_progress=lambda *what: calls.append(what),
    )  # fmt: skip
    assert calls and all(list(map(type, call)) == arguments for call in calls)
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_every_function_that_reports_takes_it_by_one_name():
    functions = [getattr(aibit, name) for name in ("convert", "export", "merge", "split", "edit")]
    assert all("on_progress" in inspect.signature(function).parameters for function in functions)
