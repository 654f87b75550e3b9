"""What a compiler makes is kept in a folder of the user's own, one for each file and version."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.torch.load import compiled
from tests.support import architectures


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as opened:
        yield opened


def test_each_file_and_version_has_a_folder(file, tmp_path, monkeypatch):
    first = compiled.cache_folder(file)
    assert first.startswith(str(tmp_path / "cache" / "aibit" / "compiled")) and os.path.isdir(first)
    assert os.stat(first).st_mode & 0o077 == 0 and compiled.cache_folder(file) == first
    aibit.edit(file.path, tmp_path / "n.aibit", metadata={"a.b": 1})
    with aibit.open(tmp_path / "n.aibit") as other:
        assert compiled.cache_folder(other) != first
    monkeypatch.setattr(compiled, "__version__", "99")
    assert compiled.cache_folder(file) != first


def test_code_that_others_could_write_does_not_run(file):
    folder = compiled.cache_folder(file)
    os.chmod(folder, 0o770)  # noqa: S103
    with pytest.raises(LoadError, match="mode 770: code in it would run"):
        compiled.cache_folder(file)


def test_a_folder_that_cannot_be_made_is_named(file, tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    with pytest.raises(LoadError, match="set XDG_CACHE_HOME"):
        compiled.cache_folder(file)


def test_a_graph_is_not_compiled(file):
    command = [sys.executable, "-m", "aibit_format", "run", "--graph", "--compile", file.path, "hello"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "leave out --compile" in done.stderr


@pytest.mark.slow
def test_a_compiled_model_writes_the_same_text(tmp_path):
    aibit.convert("fixtures/models/tiny-llama", tmp_path / "m.aibit")
    texts = []
    for options in ((), ("--compile",), ("--compile",)):
        command = [sys.executable, "-m", "aibit_format", "run", tmp_path / "m.aibit", "If the", "-n", "8"]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command += ["--weight-only", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1] == texts[2]
    (folder,) = (tmp_path / "cache" / "aibit" / "compiled").iterdir()
    assert any(folder.iterdir())
