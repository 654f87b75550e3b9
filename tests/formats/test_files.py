"""Files of sources: regular ones, up to a size."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats import files
from tests.support.paths import FIXTURES

MODEL = FIXTURES / "models" / "tiny-llama"
KINDS = {
    "fifo": os.mkfifo,
    "device": lambda path: os.symlink("/dev/zero", path),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "endless": lambda path: os.symlink("/proc/self/mem", path),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "generation_config.json"])
def test_what_is_no_regular_file_is_an_error_at_once(kind, name, tmp_path, monkeypatch):
    shutil.copytree(MODEL, tmp_path / "m")
    monkeypatch.chdir(tmp_path / "m")  # the name of a socket is short
    (tmp_path / "m" / name).unlink(missing_ok=True)
    KINDS[kind](name)
    with pytest.raises(SourceError, match=name):
        aibit.convert(tmp_path / "m", tmp_path / "m.aibit")
    assert not (tmp_path / "m.aibit").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "m.gguf"]
)
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_no_source_waits_for_a_file_of_weights(kind, name, tmp_path):
    shutil.copytree(MODEL, tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    KINDS[kind](tmp_path / "m" / name)
    for path in [tmp_path / "m" / name, *[tmp_path / "m"] * (name != "m.gguf")]:
        with pytest.raises(SourceError):
            aibit.convert(path, tmp_path / "m.aibit")
    with pytest.raises(SourceError, match="not a regular file"):
        files.pages(str(tmp_path / "m" / name))


def test_documents_of_gigabytes_are_refused_without_being_read(tmp_path):
    shutil.copytree(MODEL, tmp_path / "m")
    for name in ("README.md", "config.json", "model.safetensors.index.json"):
        path = tmp_path / "m" / name
        kept = path.read_bytes() if path.exists() else None
        with open(path, "wb") as out:
            out.truncate(3 << 30)  # sparse
        with pytest.raises(SourceError, match=name):
            aibit.convert(tmp_path / "m", tmp_path / "m.aibit")
        path.unlink() if kept is None else path.write_bytes(kept)


def test_all_documents_together_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("aibit_format.formats.huggingface.source.MAX_ALL_DOCUMENTS", 100_000)
    shutil.copytree(MODEL, tmp_path / "m")
    for i in range(4):
        (tmp_path / "m" / f"LICENSE.{i}").write_bytes(bytes(30_000))
    with pytest.raises(SourceError, match="at most"):
        aibit.convert(tmp_path / "m", tmp_path / "m.aibit")


def test_reading(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert files.read_file(str(path), 5) == b"12345" and files.begins_with(str(path), b"123")
    assert not files.begins_with(str(tmp_path), b"1") and not files.begins_with(str(path), b"2")
    with pytest.raises(SourceError, match="at most 4 are read"):
        files.read_file(str(path), 4)
    with pytest.raises(SourceError, match="No such file"):
        files.read_file(str(tmp_path / "none"), 4)
    assert files.read_file("/proc/self/stat", 1 << 20) and len(files.pages(str(path))) == 5  # states no size
    with pytest.raises(SourceError, match="at most 10 are read"):
        files.read_file("/proc/self/stat", 10)
