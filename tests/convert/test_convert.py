"""Conversions as a whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format import native as native_code
from aibit_format.errors import SchemeError
from tests.support import architectures
from tests.support.saved_models import same_files

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_sharded_checkpoints_give_the_same_file(tmp_path):
    architectures.save("llama-untied", tmp_path / "one")
    architectures.save("llama-untied", tmp_path / "many", max_shard_size="100KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    for folder in ("one", "many"):
        aibit.convert(tmp_path / folder, tmp_path / f"{folder}.aibit")
    one, many = aibit.open(tmp_path / "one.aibit"), aibit.open(tmp_path / "many.aibit")
    assert one.keys() == many.keys()
    for name in one:
        for role, plane in one.planes(name).items():
            assert np.array_equal(plane, many.planes(name)[role])


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_bytes_do_not_depend_on_threads(jobs, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    first = aibit.convert(tmp_path / "hf", tmp_path / "a.aibit", jobs=1)
    second = aibit.convert(tmp_path / "hf", tmp_path / "b.aibit", jobs=jobs)
    assert (tmp_path / "a.aibit").read_bytes() == (tmp_path / "b.aibit").read_bytes()
    assert first.root == second.root


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 70000.0])
def test_a_weight_that_is_not_finite_stops_the_conversion_by_name(value, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SchemeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_kept_weight_that_is_not_finite_stops_it_too(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SchemeError, match=r"model\.norm\.weight"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("scheme", ["int8", "nf4", "keep"])
def test_weights_in_float64_convert_as_they_do_in_the_model_s_dtype(scheme, native, tmp_path, monkeypatch):
    monkeypatch.setattr("aibit_format.native.available", native and native_code.available)
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "a.aibit", scheme)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({k: v.double() for k, v in weights.items()}, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    aibit.convert(tmp_path / "hf", tmp_path / "b.aibit", scheme)
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def test_a_model_in_float64_is_quantized_and_runs(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.float64)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.info("model.layers.0.mlp.up_proj.weight").dtype == "f32"
        assert file.info("model.norm.weight").dtype == "f64"
    assert architectures.output(aibit.load_model(tmp_path / "m.aibit"), "llama-untied").isfinite().all()
