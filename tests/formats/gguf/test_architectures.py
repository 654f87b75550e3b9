"""Architectures of GGUF, and those it has not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers

import aibit_format as aibit
from aibit_format.errors import SourceError, WriteError
from aibit_format.formats.gguf.architectures import LLAMA
from aibit_format.formats.gguf.export import export
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.formats.sources import open_source
from tests.support.gguf_models import plain, ten_types

transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 4}, "llama.expert_count is 4"),
        ({"attention.wonder": 4}, "key llama.attention.wonder is unknown here"),
        ({"attention.key_length": 16}, "'blk.0.attn_q.weight' has shape [256, 256], for 8 heads of 16"),
        ({"rope.dimension_count": 16}, "rope.dimension_count is 16, the heads have 32"),
        ({"attention.sliding_window": 128}, "sliding_window is 128"),
    ],
)
def test_a_llama_that_transformers_has_not_keeps_its_tensors(keys, message, tmp_path):
    arrays = ten_types(tmp_path / "m.gguf", **keys)
    source = open_source(tmp_path / "m.gguf")
    assert message in source.no_model and set(source.tensors) == set(arrays)
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert message in file.metadata["model.missing"]
        assert file.planes("blk.0.attn_q.weight")["blocks"].tobytes() == arrays["blk.0.attn_q.weight"].tobytes()
        assert file.check_document("gguf.json")["llama.block_count"] == 2
        with pytest.raises(WriteError, match="holds tensors but no model"):
            export(file, str(tmp_path / "b.gguf"))


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        (("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"), "attention_bias is all of them or none"),
        (("blk.0.attn_output",), "attention_bias is all of them or none"),
        (("blk.0.ffn_up",), "mlp_bias is all of them or none"),
        (("output",), "'output.bias' has no place in LlamaForCausalLM"),
    ],
)
def test_a_bias_that_transformers_has_not_keeps_the_model_from_being_one(biases, message, tmp_path):
    """One key of config.json stands for four biases: without all of them, those that are there would be lost."""
    ten_types(tmp_path / "m.gguf")
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    assert LLAMA.config(file.metadata, shapes, {})["attention_bias"] is False
    shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biases}
    with pytest.raises(SourceError, match=message):
        LLAMA.config(file.metadata, shapes, {})


@pytest.mark.parametrize("shape", [(), (256,), (1, 256, 256)])
def test_what_is_no_matrix_has_no_rows_to_reorder(shape, tmp_path):
    ten_types(tmp_path / "m.gguf")
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors} | {"blk.0.attn_q.weight": shape}
    with pytest.raises(SourceError, match=r"'blk.0.attn_q.weight' has shape .*, for 8 heads of 32"):
        LLAMA.config(file.metadata, shapes, {})


def test_another_architecture_is_kept_under_its_own_names(tmp_path):
    plain(tmp_path / "m.gguf")
    source = open_source(str(tmp_path / "m.gguf"))
    assert "architecture 'strange' is unknown here" in source.no_model and source.kind == "gguf"
    assert json.loads(source.documents["gguf.json"])["strange.list"] == [1.5, "nan"]
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert np.array_equal(file.dequantize("blk.0.w"), np.ones((2, 32)))
