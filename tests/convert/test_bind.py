"""Tensors of a source matched to those of a model."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import SourceError
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def _edit(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_tensor_is_named(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.pop("model.layers.0.mlp.down_proj.weight"))
    with pytest.raises(SourceError, match=r"layers\.0\.mlp\.down_proj\.weight"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_a_shape_that_contradicts_the_config_is_named(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(SourceError, match=r"model\.norm\.weight.*\[65\].*\[64\]"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_tied_tensors_that_differ_in_the_checkpoint_are_refused(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    _edit(tmp_path / "hf", lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}))
    with pytest.raises(SourceError, match="ties"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
