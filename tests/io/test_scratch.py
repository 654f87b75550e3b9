"""Folders for libraries that read nothing but files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from aibit_format.io import scratch
from tests.support.faults import environment

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


def test_another_place_is_found_where_there_is_no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "_IN_MEMORY", str(tmp_path / "missing"))
    with scratch.folder_of(FILES) as folder:
        _check(folder)
        assert not folder.startswith(str(tmp_path / "missing"))


def test_another_place_is_found_where_memory_is_full(monkeypatch, tmp_path):
    (tmp_path / "full").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path / "full")], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        monkeypatch.setattr(scratch, "_IN_MEMORY", str(tmp_path / "full"))
        with scratch.folder_of({**FILES, "large": bytes(1 << 16)}) as folder:
            _check(folder)
            assert not folder.startswith(str(tmp_path / "full"))
        assert os.listdir(tmp_path / "full") == []
    finally:
        subprocess.run(["umount", str(tmp_path / "full")], check=True)


KILLED = """
    import os, signal, sys
    from aibit_format.io import scratch

    scratch._IN_MEMORY = sys.argv[1]
    with scratch.folder_of({"a": b"text"}):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_goes_with_the_next(monkeypatch, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    assert subprocess.run(command, env=environment()).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    monkeypatch.setattr(scratch, "_IN_MEMORY", str(tmp_path))
    with scratch.folder_of(FILES) as folder:
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
    assert os.listdir(tmp_path) == []
