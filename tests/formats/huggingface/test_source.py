"""Checkpoints that are damaged, hostile or incomplete: a clear error that names file and tensor, and no output."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import aibit_format as aibit
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


def test_an_index_may_name_what_is_not_there_if_nobody_needs_it(sharded, tmp_path):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    aibit.convert(sharded, tmp_path / "m.aibit", scheme="keep")
    shard = sharded / index["weight_map"]["model.norm.weight"]
    weights = load_file(shard)
    del weights["model.norm.weight"]
    save_file(weights, shard, {"format": "pt"})
    (tmp_path / "m.aibit").unlink()
    refused(sharded, "lacks: model.norm.weight")


def test_a_single_file_goes_before_an_index_that_an_earlier_save_left(tmp_path):
    """As in transformers; old shards may be gone, or still hold the old weights."""
    architectures.save("llama-untied", tmp_path / "hf", max_shard_size="100KB")
    old = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    weights = {name: value.clone() for name, value in old.state_dict().items()}
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(theirs.model.norm.weight, weights["model.norm.weight"])
    for case in ("all shards", "no shards"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="keep", overwrite=True)
        with aibit.open(tmp_path / "m.aibit") as file:
            assert np.array_equal(file.dequantize("model.norm.weight"), weights["model.norm.weight"].numpy()), case
        for shard in (tmp_path / "hf").glob("model-*"):
            shard.unlink()


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
