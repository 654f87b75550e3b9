"""Trained weights: MiniLM from its package, and the two fixture models."""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.interop import to_torch
from aibit_format.schemes.plain import Plain
from tests.support.paths import ROOT
from tools.spec import scheme_table

SENTENCES = (ROOT / "tools" / "spec" / "sentences.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """(directory of the checkpoint, converted file, report)."""
    folder = scheme_table.checkpoint()
    file = tmp_path_factory.mktemp("minilm") / "minilm.aibit"
    return folder, file, aibit.convert(folder, file)


def embeddings(model, tokenizer) -> torch.Tensor:
    """Of the sentences, as the table of schemes takes them."""
    return scheme_table.embeddings(model, tokenizer, SENTENCES)


def test_minilm_embeddings_equal_load_in_8bit(minilm):
    folder, file, report = minilm
    model, tokenizer = aibit.load(file)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    reference = transformers.AutoModel.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    original = transformers.AutoModel.from_pretrained(folder)
    found, expected = embeddings(model, tokenizer), embeddings(reference.eval(), theirs)
    assert len(SENTENCES) == 50 and torch.equal(found, expected)
    cosine = (found * embeddings(original.eval(), theirs)).sum(1)
    assert cosine.mean() > 0.998 and cosine.min() > 0.99
    assert report.file_bytes == os.path.getsize(file) < 0.66 * os.path.getsize(f"{folder}/model.safetensors")
    quantized = [t for t in report.tensors if t.scheme == "int8"]
    assert len(quantized) == 37  # six layers of six, and the pooler
    assert all(t.error.relative_rms < 0.03 and t.error.signal_to_noise_db > 30 for t in quantized)


def test_minilm_with_the_weights_decoded_is_closer_still(minilm):
    folder, file, _ = minilm
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    original = transformers.AutoModel.from_pretrained(folder).eval()
    expected = embeddings(original, tokenizer)
    with aibit.open(file) as opened:
        original.load_state_dict({name: torch.from_numpy(opened.dequantize(name).copy()) for name in opened})
    cosine = (embeddings(original, tokenizer) * expected).sum(1)
    assert cosine.mean() > 0.9995


def test_minilm_tokenizer_and_documents_come_back_exactly(minilm):
    folder, file, _ = minilm
    ours, theirs = aibit.load_tokenizer(file), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.get_vocab() == theirs.get_vocab() and ours.special_tokens_map == theirs.special_tokens_map
    assert ours(SENTENCES)["input_ids"] == theirs(SENTENCES)["input_ids"]
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    with aibit.open(file) as opened:
        assert bytes(opened.documents["tokenizer.json"]) == pathlib.Path(folder, "tokenizer.json").read_bytes()


def perplexity(model, tokenizer, text: str, context: int) -> float:
    """exp of the mean negative log-likelihood a token, over windows of ``context`` tokens."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: len(ids) // context * context].view(-1, context)
    total = 0.0
    with torch.no_grad():
        for window in windows.split(8):
            logits = model(window).logits[:, :-1].float()
            total += float(torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), window[:, 1:].reshape(-1), reduction="sum"
            ))  # fmt: skip
    return math.exp(total / (windows.shape[0] * (context - 1)))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_perplexity_of_int8_is_within_one_percent_of_float32(name, fixtures, tmp_path):
    folder = fixtures / "models" / name
    text = (fixtures / "models" / "heldout.txt").read_text()
    aibit.convert(folder, tmp_path / "m.aibit")
    model, tokenizer = aibit.load(tmp_path / "m.aibit")
    original = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = perplexity(original, tokenizer, text, 256)
    found = perplexity(model, tokenizer, text, 256)
    assert expected < 60  # a model of 1024 equally likely tokens would have 1024
    assert abs(found / expected - 1) < 0.01


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_fixture_models_generate_what_load_in_8bit_generates(name, fixtures, tmp_path):
    folder = fixtures / "models" / name
    aibit.convert(folder, tmp_path / "m.aibit")
    model, tokenizer = aibit.load(tmp_path / "m.aibit")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    assert model.generation_config.to_dict() == reference.generation_config.to_dict()
    batch = tokenizer("Return the ", return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": 40, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), reference.generate(**batch, **options))


def test_chat_template_and_special_tokens_come_back(fixtures, tmp_path):
    folder = fixtures / "models" / "tiny-llama"
    aibit.convert(folder, tmp_path / "m.aibit")
    ours = aibit.load_tokenizer(tmp_path / "m.aibit")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is a list?"}]
    assert ours.chat_template == theirs.chat_template is not None
    assert ours.apply_chat_template(messages, add_generation_prompt=True) == theirs.apply_chat_template(
        messages, add_generation_prompt=True
    )
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_every_kept_tensor_is_the_source_bit_for_bit(fixtures, tmp_path):
    from safetensors import safe_open

    folder = fixtures / "models" / "tiny-llama"
    aibit.convert(folder, tmp_path / "m.aibit")
    sources = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sources |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    with aibit.open(tmp_path / "m.aibit") as opened:
        kept = [name for name in opened if isinstance(opened.info(name).scheme, Plain)]
        assert kept
        for name in kept:
            assert torch.equal(to_torch(opened.planes(name)["values"], opened.info(name).dtype), sources[name])
        assert np.isfinite(opened.metadata["quantization.error.relative_rms"]).all()
