"""Fixtures of version 1.0 are never made anew."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import frozen  # noqa: E402


def test_no_frozen_fixture_has_changed():
    there = frozen.there()
    assert [name for name, digest in frozen.digests().items() if there.get(name) != digest] == []


def test_every_fixture_is_frozen():
    assert sorted(frozen.there().keys() - frozen.digests().keys()) == [], "run tools/make_fixtures.py and make_bad.py"


def test_there_are_good_and_bad_ones():
    names = frozen.digests().keys()
    assert {"container/hello.aibit", "container/hello.json", "bad/empty.aibit"} <= names
    assert not {"bad/index.json", "bad/README.md"} & names


def test_a_frozen_fixture_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "FIXTURES", tmp_path)
    monkeypatch.setattr(frozen, "LIST", tmp_path / "FROZEN.sha256")
    folder = tmp_path / "bad"
    assert frozen.write(folder, {"a": b"1", "index.json": b"[]"}) == ["bad/a"]
    with pytest.raises(frozen.FrozenError, match="bad/a"):
        frozen.write(folder, {"a": b"2", "b": b"3"})
    assert (folder / "a").read_bytes() == b"1" and not (folder / "b").exists()
    assert frozen.write(folder, {"a": b"1", "b": b"3", "index.json": b"[1]"}) == ["bad/b"]
    assert frozen.digests().keys() == {"bad/a", "bad/b"}
