"""Directories of dequantized safetensors."""

import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from aibit_format.formats.exports import export
from tests.support.exported_models import convert, load, logits
from tests.support.exported_models import originals as originals


@pytest.mark.parametrize("name", ["tied", "gpt2", "t5"])
def test_dequantized_directories_load_like_any_other(name, originals, tmp_path):
    file = convert(originals(name), tmp_path / "m.aibit", "nf4")
    paths = export(file, "safetensors", tmp_path / "out")
    assert sorted(paths) == sorted(str(p) for p in (tmp_path / "out").iterdir())
    model = load(name, tmp_path / "out")
    quantized = 0
    for key, value in model.state_dict().items():
        info = file.info(key)
        wanted = file.dequantize(key).T if info.transposed else file.dequantize(key)
        assert np.array_equal(value.float(), np.float16(wanted) if info.dtype == "f16" else wanted), key
        quantized += info.scheme.name == "nf4"
    assert quantized
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    original = safetensors.torch.load_file(originals(name) / "model.safetensors")
    assert written.keys() == original.keys()  # ties left out alike


@pytest.mark.parametrize("to", ["huggingface", "safetensors"])
def test_shards(to, originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "nf4")
    export(file, to, tmp_path / "one")
    export(file, to, tmp_path / "many", max_shard_size=30_000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "many" / "model.safetensors").exists()
    assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    parts = {path.name: safetensors.torch.load_file(path) for path in shards}
    assert {key: name for name, part in parts.items() for key in part} == index["weight_map"]
    sizes = [sum(value.nbytes for value in part.values()) for part in parts.values()]
    assert sum(sizes) == index["metadata"]["total_size"] and max(sizes) <= 30_000
    one, many = load("untied", tmp_path / "one"), load("untied", tmp_path / "many")
    assert torch.equal(logits(one, "untied"), logits(many, "untied"))
