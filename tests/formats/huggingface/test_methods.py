"""Which source opens a directory, by its quantization method."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers.utils.quantization_config import QuantizationMethod

from aibit_format.errors import SourceError
from aibit_format.formats.huggingface.methods import METHODS, REFUSED
from aibit_format.formats.sources import open_source


def directory(folder, **config):
    save_file({"m.q.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("target", sorted(set(METHODS.values())))
def test_each_method_has_a_source(target):
    module, name = target.split(":")
    assert vars(import_module(module))[name].kind


@pytest.mark.parametrize("method", sorted(REFUSED.keys() - {"auto-round"}))
def test_a_method_that_is_not_read_is_named_with_what_to_do(method, tmp_path):
    directory(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(SourceError, match=rf"config\.json: quantized with quant_method '{method}'.*; convert"):
        open_source(tmp_path)
    assert method not in METHODS


@pytest.mark.parametrize("method", ["of yesterday", "of tomorrow", ""])
def test_an_unknown_method_is_refused_by_name(method, tmp_path):
    directory(tmp_path, text_config={"quantization_config": {"quant_method": method}})
    with pytest.raises(SourceError, match=rf"'{method}', which no source here reads; known: .*fp8.*; convert"):
        open_source(tmp_path)


@pytest.mark.parametrize("said", [["fp8"], "fp8", 8])
def test_settings_that_are_no_object_are_shown(said, tmp_path):
    directory(tmp_path, quantization_config=said)
    with pytest.raises(SourceError, match="which no source here reads"):
        open_source(tmp_path)


def test_every_method_of_transformers_is_read_or_refused():
    known = {method.value for method in QuantizationMethod} - {"bitsandbytes_4bit", "bitsandbytes_8bit", "gguf"}
    assert known <= METHODS.keys() | REFUSED.keys()
