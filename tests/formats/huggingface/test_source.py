"""Checkpoints that are damaged, hostile or incomplete: a clear error that names file and tensor, and no output."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support import architectures
from tests.support.edited_configs import refused


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in several shards."""
    architectures.save("llama-untied", tmp_path / "hf", max_shard_size="100KB")
    return tmp_path / "hf"


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()
    refused(sharded, "is missing")


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(sharded, f"{shard.name}.*truncated")


def test_an_index_that_names_what_is_not_there_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    refused(sharded, "'ghost.weight'")


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 5}', "{}"])
def test_an_index_that_is_none_is_refused(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "not an index")


def test_an_index_with_a_path_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    refused(sharded, "is a path")


def test_a_tensor_in_two_shards_is_refused(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shutil.copy(shards[0], sharded / "again.safetensors")
    index["weight_map"]["extra"] = "again.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, "is in .* and in")


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tmp_path / "hf", "pytorch_model.bin: refused by torch.load")
