"""Paths that lead to no model although it looks so."""

from __future__ import annotations

import os
import shutil

import pytest

import aibit_format as aibit
from aibit_format.errors import AibitError, SourceError
from aibit_format.io.mistaken import not_a_file, what_is_wrong
from tests.support import architectures

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4976698672\n"
NAMES = ["model.safetensors", "config.json", "tokenizer.json", "README.md"]


@pytest.fixture
def hf(tmp_path):
    """A checkpoint with a tokenizer and a model card."""
    architectures.save("llama-untied", tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("A model.\n")
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    return tmp_path / "hf"


def _refused(source, where) -> str:
    with pytest.raises(AibitError) as caught:
        aibit.convert(source, where / "m.aibit")
    assert not (where / "m.aibit").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_of_git_lfs_is_named(name, hf, tmp_path):
    (hf / name).write_text(POINTER)
    message = _refused(hf, tmp_path)
    assert name in message and "Git LFS pointer to a file of 4976698672 bytes" in message and "git lfs pull" in message


def test_pointers_among_shards_and_pickles_are_named(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", max_shard_size="100KB")
    shard = sorted((tmp_path / "hf").glob("model-*"))[-1]
    shard.write_text(POINTER)
    assert f"{shard.name}: is a Git LFS pointer" in _refused(tmp_path / "hf", tmp_path)
    for weights in (tmp_path / "hf").glob("model*"):
        weights.unlink()
    (tmp_path / "hf" / "pytorch_model.bin").write_text(POINTER)
    assert "pytorch_model.bin: is a Git LFS pointer" in _refused(tmp_path / "hf", tmp_path)
    for name in ("m.gguf", "x.aibit"):
        (tmp_path / name).write_text(POINTER)
        assert f"{name}: is a Git LFS pointer" in _refused(tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_leads_nowhere_is_named(name, hf, tmp_path):
    (hf / name).unlink()
    os.symlink("../../blobs/abc", hf / name)
    message = _refused(hf, tmp_path)
    assert name in message and "is a link to ../../blobs/abc, which is not there" in message and "cp -rL" in message


def test_the_cache_of_the_hub_is_named(hf, tmp_path):
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "abc"
    shutil.copytree(hf, snapshot)
    for folder in (snapshot.parent, snapshot.parents[1]):
        assert str(snapshot) in _refused(folder, tmp_path)
    assert str(snapshot.parents[1]) in _refused(tmp_path / "hub", tmp_path)


def test_a_file_for_a_directory_and_the_other_way_round_are_named(hf, tmp_path):
    message = _refused(hf / "model.safetensors", tmp_path)
    assert "is one file of weights; give the directory" in message and message.endswith(str(hf))
    with pytest.raises(AibitError, match="is a directory; give the name of the file"):
        aibit.convert(hf, tmp_path, overwrite=True)
    assert f"aibit convert {hf}" in str(not_a_file(str(hf)))
    (tmp_path / "empty").mkdir()
    assert "is an empty directory" in _refused(tmp_path / "empty", tmp_path)
    (hf / "config.json").unlink()
    assert "has weights and no config.json" in _refused(hf, tmp_path)
    (hf / "model.safetensors").rename(tmp_path / "empty" / "m.gguf")
    assert "give one of its files" in _refused(tmp_path / "empty", tmp_path)


def test_nothing_is_said_of_what_may_be_fine(hf):
    assert what_is_wrong(str(hf)) is what_is_wrong(str(hf / "config.json")) is None
    assert not_a_file("https://example.org/m.aibit") is None
    with pytest.raises(SourceError, match="no such file or directory"):
        aibit.convert(hf.parent / "missing", hf.parent / "m.aibit")
