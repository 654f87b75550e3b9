"""Copies of models with graphs."""

from __future__ import annotations

import pytest

import aibit_format as aibit
from aibit_format.errors import GraphError, WriteError
from aibit_format.graph.program import DOCUMENT, parse
from tests.support.graphs import converted


def test_a_copy_has_a_graph_and_the_same_tensors(tmp_path):
    path = converted("llama", tmp_path)
    program, paths = aibit.add_graph(path, tmp_path / "g.aibit", positions=32)
    assert paths == [str(tmp_path / "g.aibit")]
    with aibit.open(path) as before, aibit.open(paths[0], verify="full") as after:
        assert parse(after.documents[DOCUMENT]) == program and program.positions == 32
        assert DOCUMENT not in before.documents
        assert {name: bytes(data) for name, data in before.documents.items()} == {
            name: bytes(data) for name, data in after.documents.items() if name != DOCUMENT
        }
        for name in before:
            planes = before.planes(name)
            assert all(plane.tobytes() == after.planes(name)[role].tobytes() for role, plane in planes.items())
    with pytest.raises(WriteError):
        aibit.add_graph(path, tmp_path / "g.aibit")
    again, _ = aibit.add_graph(tmp_path / "g.aibit", tmp_path / "h.aibit", overwrite=True)
    assert again.positions == 64 and again.nodes == program.nodes


def test_shards(tmp_path):
    converted("llama", tmp_path)
    aibit.convert(tmp_path / "hf", tmp_path / "s.aibit", "int8", max_shard_size=40_000)
    first = min(tmp_path.glob("s-*.aibit"))
    _, paths = aibit.add_graph(first, tmp_path / "t.aibit")
    assert len(paths) > 1
    assert aibit.load_graph(paths[0]).context == 64


@pytest.mark.parametrize(("family", "says"), [("mixtral", "has experts"), ("gpt2", "one that is not transposed")])
def test_nothing_is_written_of_a_model_that_cannot_be_recorded(family, says, tmp_path):
    path = converted(family, tmp_path)
    with pytest.raises(GraphError, match=says):
        aibit.add_graph(path, tmp_path / "g.aibit")
    assert not (tmp_path / "g.aibit").exists()
