"""The command ``aibit extract``."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from aibit_format.io.atomic import AtomicFile
from tests.support.command import run
from tests.support.command_models import model as model


def test_extract_gives_documents_and_tensors_back(model, tmp_path, capsys):
    status, _, _ = run("extract", model / "m.aibit", "-o", tmp_path, "--tensor", "model.norm.weight", capsys=capsys)
    assert status == 0
    assert np.load(tmp_path / "model.norm.weight.npy").shape == (64,)
    status, _, _ = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 0
    assert (tmp_path / "config.json").read_bytes() == (model / "hf" / "config.json").read_bytes()
    status, _, err = run("extract", model / "m.aibit", "-o", tmp_path, capsys=capsys)
    assert status == 1 and "exists" in err


def test_what_is_there_stays_until_what_replaces_it_is_written(model, tmp_path, capsys, monkeypatch):
    arguments = "extract", model / "m.aibit", "-o", tmp_path, "--force"
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "generation_config.json").write_text("old too")
    before = set(os.listdir(tmp_path))

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(AtomicFile, "write", full)
        status, _, err = run(*arguments, capsys=capsys)
    assert status == 1 and "No space left" in err
    assert (tmp_path / "config.json").read_text() == "old" and set(os.listdir(tmp_path)) == before
    assert run(*arguments, capsys=capsys)[0] == 0
    assert (tmp_path / "config.json").read_bytes() == (model / "hf" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["config.json", "model.norm.weight.npy"])
def test_what_is_replaced_keeps_its_permissions(name, model, tmp_path, capsys):
    (tmp_path / name).write_text("old")
    (tmp_path / name).chmod(0o600)
    names = ["config.json", "--tensor", "model.norm.weight"]
    assert run("extract", model / "m.aibit", *names, "-o", tmp_path, "--force", capsys=capsys)[0] == 0
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600 and (tmp_path / name).read_bytes() != b"old"


def test_a_file_in_the_place_of_the_directory_is_named(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = run("extract", model / "m.aibit", "-o", tmp_path / "file", capsys=capsys)
    assert status == 1 and "is a file; -o names the directory" in err
