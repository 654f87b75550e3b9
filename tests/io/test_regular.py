"""Regular files are opened, and nothing else."""

from __future__ import annotations

import os
import socket

import pytest

from aibit_format.io.regular import NotRegularError, open_regular


def test_a_regular_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    os.symlink(tmp_path / "file", tmp_path / "link")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "device"])
def test_anything_else_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    if kind == "folder":
        os.mkdir("x")
    elif kind == "fifo":
        os.mkfifo("x")  # opened for reading, it would wait for a writer
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x")
    else:
        os.symlink("/dev/zero", "x")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(OSError) as caught:
        open_regular("x")
    assert kind == "socket" or isinstance(caught.value, NotRegularError)
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
