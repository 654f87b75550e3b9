"""The command ``aibit graph``."""

from __future__ import annotations

import json

import aibit_format as aibit
from aibit_format.graph.program import DOCUMENT
from tests.support.command_models import model, shell  # noqa: F401 - a fixture
from tests.support.graphs import converted


def test_a_graph_is_added(model):  # noqa: F811
    done = shell("graph", model / "m.aibit", "-o", model / "g.aibit", "--positions", "32")
    assert done.returncode == 0 and "steps, up to 32 tokens" in done.stderr and "g.aibit" in done.stdout
    with aibit.open(model / "g.aibit") as file:
        assert DOCUMENT in file.documents
    again = shell("graph", model / "m.aibit", "-o", model / "g.aibit", "--json")
    assert again.returncode == 1 and "exists" in again.stderr
    again = shell("graph", model / "m.aibit", "-o", model / "g.aibit", "--json", "--force")
    assert again.returncode == 0 and str(model / "g.aibit") in json.dumps(json.loads(again.stdout))
    assert aibit.load_graph(model / "g.aibit").context > 32


def test_what_cannot_be_recorded_says_why(tmp_path):
    done = shell("graph", converted("mixtral", tmp_path), "-o", tmp_path / "g.aibit")
    assert done.returncode == 1 and "has experts" in done.stderr and "AIB-E907" in done.stderr
    assert not (tmp_path / "g.aibit").exists() and "Traceback" not in done.stderr


def test_convert_writes_a_graph_at_once(model):  # noqa: F811
    command = ("convert", model / "hf", "-o", model / "c.aibit", "--graph")
    done = shell(*command)
    assert done.returncode == 0 and "aibit: graph of" in done.stderr and "c.aibit" in done.stdout, done.stderr
    aibit.add_graph(model / "m.aibit", model / "d.aibit")
    assert (model / "c.aibit").read_bytes() == (model / "d.aibit").read_bytes()
    assert not [path for path in model.iterdir() if path.name.startswith(".")]
    assert "exists" in shell(*command).stderr and shell(*command, "--force").returncode == 0


def test_nothing_is_left_where_a_graph_cannot_be_had(tmp_path):
    converted("mixtral", tmp_path)
    done = shell("convert", tmp_path / "hf", "-o", tmp_path / "c.aibit", "--graph")
    assert done.returncode == 1 and "AIB-E907" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "m.aibit"}


def test_a_graph_and_figures_are_written_one_after_the_other(tmp_path):
    done = shell("convert", tmp_path, "-o", tmp_path / "c.aibit", "--graph", "--measure", tmp_path / "t")
    assert done.returncode == 2 and "add the graph afterwards with aibit graph" in done.stderr


def test_positions_are_a_number(tmp_path):
    done = shell("graph", tmp_path / "m.aibit", "-o", tmp_path / "g.aibit", "--positions", "0")
    assert done.returncode == 2 and "--positions must be 1 or more" in done.stderr
