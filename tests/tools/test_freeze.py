"""Fixtures of version 1.0 are never made anew."""

import pytest

from tools.fixtures import freeze


def test_no_frozen_fixture_has_changed():
    there = freeze.there()
    assert [name for name, digest in freeze.digests().items() if there.get(name) != digest] == []


def test_every_fixture_is_frozen():
    assert sorted(freeze.there().keys() - freeze.digests().keys()) == [], "run make_fixtures and make_bad"


def test_there_are_good_and_bad_ones():
    names = freeze.digests().keys()
    assert {"container/hello.aibit", "container/hello.json", "bad/empty.aibit"} <= names
    assert not {"bad/index.json", "bad/README.md"} & names


def test_a_frozen_fixture_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(freeze, "FIXTURES", tmp_path)
    monkeypatch.setattr(freeze, "LIST", tmp_path / "FROZEN.sha256")
    folder = tmp_path / "bad"
    assert freeze.write(folder, {"a": b"1", "index.json": b"[]"}) == ["bad/a"]
    with pytest.raises(freeze.FrozenError, match="bad/a"):
        freeze.write(folder, {"a": b"2", "b": b"3"})
    assert (folder / "a").read_bytes() == b"1" and not (folder / "b").exists()
    assert freeze.write(folder, {"a": b"1", "b": b"3", "index.json": b"[1]"}) == ["bad/b"]
    assert freeze.digests().keys() == {"bad/a", "bad/b"}
