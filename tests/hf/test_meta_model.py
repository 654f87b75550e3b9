"""What a model says of its tensors."""

from __future__ import annotations

import warnings

from torch import nn

import aibit_format as aibit
from aibit_format.hf import compat
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_ties_are_aliases_and_share_memory(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    file = aibit.open(tmp_path / "m.aibit")
    assert file.info("lm_head.weight").alias_of == "model.embed_tokens.weight"
    model = aibit.load_model(file)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_layers_whose_weights_a_model_uses_by_themselves_are_kept():
    from transformers.models.hy_v4 import modeling_hy_v4
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention
    from transformers.models.t5.modeling_t5 import T5DenseActDense
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    found = {each for each in vars(modeling_hy_v4).values() if isinstance(each, type) and issubclass(each, nn.Module)}
    assert any("weights_proj" in compat.weights_used(each) for each in found)
    assert "dt_proj" in compat.weights_used(MambaMixer)
    assert compat.weights_used(WavLMAttention) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert compat.weights_used(VisionAttention) == compat.weights_used(T5DenseActDense) == frozenset()
