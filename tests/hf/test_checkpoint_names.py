"""What a checkpoint need not have."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import SourceError


def test_positions_that_a_checkpoint_lacks_are_computed(tmp_path):
    config = transformers.MarianConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=40, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1, dtype="float32",
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    model.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    assert not any("embed_positions" in name for name in tensors) and "final_logits_bias" in tensors
    del tensors["final_logits_bias"]
    save_file(tensors, path, {"format": "pt"})
    before = torch.random.get_rng_state()
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    assert torch.equal(torch.random.get_rng_state(), before)
    loaded, ids = aibit.load_model(tmp_path / "m.aibit"), torch.arange(1, 9)[None]
    with torch.inference_mode():
        found, expected = (each(input_ids=ids, decoder_input_ids=ids).logits for each in (loaded, model))
    assert torch.equal(found, expected)


def test_a_parameter_of_training_alone_may_be_missing(tmp_path):
    config = transformers.Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        conv_dim=[16, 16], conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, dtype="float32",
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, path, {"format": "pt"})
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    loaded, sound = aibit.load_model(tmp_path / "m.aibit"), torch.linspace(-1, 1, 2000)[None]
    assert not loaded.wav2vec2.masked_spec_embed.any()
    with torch.inference_mode():
        assert torch.equal(loaded(sound).logits, model(sound).logits)
    del tensors["wav2vec2.feature_projection.projection.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks: wav2vec2\.feature_projection\.projection\.weight"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32", overwrite=True)
