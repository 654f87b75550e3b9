"""Folders for libraries that read nothing but files."""

from __future__ import annotations

import os
import tempfile

import pytest

from aibit_format.io import scratch

FILES = {"a.json": b"{}", "b/c.jinja": memoryview(b"text")}


def _check(folder: str) -> None:
    for name, data in FILES.items():
        with open(os.path.join(folder, name), "rb") as file:
            assert file.read() == data
    assert os.stat(folder).st_mode & 0o77 == 0


def test_files_are_there_and_then_gone():
    with scratch.folder_of(FILES) as folder:
        _check(folder)
    assert not os.path.exists(folder)


@pytest.mark.parametrize("memory", ["full", "missing"])
def test_another_place_is_found_where_memory_is_full_or_missing(memory, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "_IN_MEMORY", str(tmp_path / memory))
    if memory == "full":  # of all devices, this one is always out of room
        (tmp_path / memory).mkdir()
        made = tempfile.mkdtemp(dir=tmp_path)
        os.symlink("/dev/full", os.path.join(made, "a.json"))
        real = tempfile.mkdtemp
        monkeypatch.setattr(tempfile, "mkdtemp", lambda *a, **k: made if k.get("dir", a[-1]) else real(*a, **k))
    with scratch.folder_of(FILES) as folder:
        _check(folder)
        assert not folder.startswith(str(tmp_path / memory))
    assert os.listdir(tmp_path) == ([memory] if memory == "full" else [])
