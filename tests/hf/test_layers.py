"""What the layers of a model are."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from aibit_format.hf.layers import is_linear, looks_up, multiplies, weights_used


def test_what_multiplies_and_no_more():
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
    from transformers.pytorch_utils import Conv1D

    assert is_linear(nn.Linear(2, 2)) and is_linear(Conv1D(2, 2)) and not is_linear(nn.Bilinear(2, 2, 2))
    layer, x = FalconLinear(3, 2), torch.randn(4, 3)
    assert multiplies(layer) and not is_linear(layer)
    assert torch.allclose(layer(x), nn.Linear.forward(layer, x))
    assert issubclass(PhimoeTopKRouter, nn.Linear) and not multiplies(PhimoeTopKRouter.__new__(PhimoeTopKRouter))
    assert not multiplies(nn.MultiheadAttention(2, 1).out_proj)  # which torch reads the weight of


def test_layers_whose_weights_a_model_uses_by_themselves_are_kept():
    from transformers.models.hy_v4 import modeling_hy_v4
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention
    from transformers.models.t5.modeling_t5 import T5DenseActDense
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    found = {each for each in vars(modeling_hy_v4).values() if isinstance(each, type) and issubclass(each, nn.Module)}
    assert any("weights_proj" in weights_used(each) for each in found)
    assert "dt_proj" in weights_used(MambaMixer)
    assert weights_used(WavLMAttention) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert weights_used(VisionAttention) == weights_used(T5DenseActDense) == frozenset()


@pytest.mark.parametrize(("module", "name", "arguments", "expected"), [
    ("gemma3", "Gemma3TextScaledWordEmbedding", (8, 4, 0, 2.0), True),
    ("bart", "BartScaledWordEmbedding", (8, 4, 0, 2.0), True),
    ("bart", "BartLearnedPositionalEmbedding", (8, 4), False),
    ("ovis2", "Ovis2VisualEmbeddingTable", (8, 4), False),
    ("idefics", "IdeficsDecoupledEmbedding", (8, 0, 4), False),
])  # fmt: skip
def test_embeddings_that_only_look_up(module, name, arguments, expected):
    family = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)
    assert looks_up(family(*arguments)) is expected


def test_others_are_no_tables():
    class Mine(nn.Embedding):
        pass

    assert looks_up(nn.Embedding(8, 4)) and not looks_up(Mine(8, 4)) and not looks_up(nn.Linear(8, 4))
