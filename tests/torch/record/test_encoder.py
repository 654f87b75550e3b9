"""Recording encoders: states of tokens that see each other."""

from __future__ import annotations

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import GraphError, LoadError
from aibit_format.torch.record.record import record
from tests.support import architectures
from tests.support.encoders import IDS, NAMES, recorded


@pytest.mark.parametrize(("name", "dtype"), [*((each, torch.float32) for each in NAMES), ("bert", torch.bfloat16)])
def test_a_graph_computes_what_the_model_does(name, dtype, tmp_path):
    path = recorded(name, tmp_path, dtype=dtype)
    graph, model = aibit.load_graph(path), aibit.load_model(path, weight_only=True)
    with torch.inference_mode():
        assert architectures.close(graph(IDS).last_hidden_state, model(IDS).last_hidden_state)
        few = IDS[:, :3]
        assert architectures.close(graph(few).last_hidden_state, model(few).last_hidden_state)


def test_a_head_gives_logits(tmp_path):
    path = recorded("bert", tmp_path, kind=transformers.AutoModelForMaskedLM)
    with torch.inference_mode():
        expected = aibit.load_model(path, weight_only=True)(IDS).logits
    found = aibit.load_graph(path)(IDS).logits
    assert found.shape == (1, IDS.shape[1], 160) and torch.allclose(found, expected, atol=1e-5)


def test_it_does_not_continue_texts(tmp_path):
    model = aibit.load_graph(recorded("bert", tmp_path))
    assert not model.can_generate()
    with pytest.raises(LoadError, match="an encoder's, which does not continue texts"):
        model.generate(IDS)


def small(family, **more):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return transformers.AutoConfig.for_model(family, **sizes, **more)


def test_what_is_no_encoder_of_tokens(tmp_path):
    with pytest.raises(GraphError, match="ViTModel is neither a decoder that generates text nor an encoder of tokens"):
        record(transformers.AutoModel.from_config(small("vit", image_size=32, patch_size=16)))
    with pytest.raises(GraphError, match="T5Model has an encoder and a decoder"):
        record(transformers.AutoModel.from_config(
            transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ))  # fmt: skip


def test_windows_in_both_directions_have_no_words(tmp_path):
    config = transformers.ModernBertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=4,
    )  # fmt: skip
    with pytest.raises(GraphError):
        record(transformers.AutoModel.from_config(config).eval())
