"""The empty model of a source, from headers and config.json alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.models import config_of, meta_model_of, missing_dtype
from aibit_format.formats.sources import open_source
from aibit_format.numpy import save_file
from tests.support import architectures


@pytest.fixture
def folder(tmp_path):
    architectures.save("llama-tied", tmp_path)
    return tmp_path


def test_it_has_the_names_and_shapes_of_the_weights(folder):
    source = open_source(folder)
    model = meta_model_of(source)
    assert model.architecture == "LlamaForCausalLM" and config_of(source)["model_type"] == "llama"
    assert {name: spec.shape for name, spec in model.parameters.items() if name in source.tensors} == {
        name: tensor.shape for name, tensor in source.tensors.items()
    }
    assert all(value.device.type == "meta" for value in model.module.parameters())


def test_the_dtype_is_that_of_the_config_or_of_the_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    for said, wanted in (("bfloat16", "bf16"), (None, "f32")):
        (folder / "config.json").write_text(json.dumps(config | {"dtype": said}))
        source = open_source(folder)
        assert meta_model_of(source).dtype == wanted
        assert missing_dtype(source) == (None if said else "float32")
    assert meta_model_of(open_source(folder), dtype="float16").dtype == "f16"


def test_without_a_config_there_is_no_model(tmp_path):
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "m.aibit")
    with pytest.raises(SourceError, match=r"no config\.json"):
        config_of(open_source(tmp_path / "m.aibit"))
