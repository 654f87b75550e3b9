"""Statistics that are taken a block at a time are those of the whole model."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import aibit_format as aibit
from aibit_format.calibrate import files, text
from aibit_format.calibrate.blocks import Forward
from aibit_format.calibrate.calibrate import PARTIAL, are_texts, calibrate
from aibit_format.errors import LoadError, SourceError, WriteError
from aibit_format.formats.sources import open_source
from tests.support import architectures, calibrated

FEW = {"samples": 3, "length": 24}


def cut(folder, path, **options):
    chosen = FEW | options
    return text.samples(open_source(folder), text.read([path]), chosen["samples"], chosen["length"]).ids


def agrees(found, rows, expert=0):
    """The statistics of one weight, or of one of its experts, are those of the rows that went into it."""
    assert found.counts[expert] == len(rows)
    np.testing.assert_allclose(found.sum2[expert], np.square(rows).sum(0), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(found.sum[expert], rows.sum(0), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found.magnitude[expert], np.abs(rows).sum(0), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found.largest[expert], np.abs(rows).max(0), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose([found.low[expert], found.high[expert]], [rows.min(), rows.max()], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", architectures.MODELS)
def test_statistics_are_those_of_a_forward_of_the_whole_model(name, tmp_path):
    folder, path = calibrated.save(name, tmp_path / "hf")
    found = calibrate(folder, [path], **FEW)
    expected = calibrated.whole(architectures.load(name, folder), cut(folder, path))
    assert found.about.streamed and found.about.tokens == 72
    single = {key for key, each in found.inputs.items() if not each.experts}
    assert single == {key for key in expected if not key.rpartition(".")[2].isdigit()}
    for key in single:
        agrees(found.inputs[key], expected[key])
        values = expected[key].ravel()
        assert found.inputs[key].mean == pytest.approx(values.mean(), abs=1e-5)
        assert found.inputs[key].std == pytest.approx(values.std(), rel=1e-4)
        score = math.exp(-abs(values.mean()) / (values.std() + 1e-8))
        assert found.inputs[key].score() == pytest.approx(score, rel=1e-4)
        ranked = np.quantile(values, [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999], method="inverted_cdf")
        np.testing.assert_allclose(found.inputs[key].percentiles, ranked, rtol=2**-7, atol=1e-4)


def test_experts_have_statistics_of_the_tokens_that_they_saw(tmp_path):
    folder, path = calibrated.save("mixtral", tmp_path / "hf")
    found = calibrate(folder, [path], **FEW)
    expected = calibrated.whole(architectures.load("mixtral", folder), cut(folder, path))
    experts = [key for key, each in found.inputs.items() if each.experts]
    assert len(experts) == 4
    for key in experts:
        assert found.inputs[key].counts.sum() == 2 * 72  # each token goes to two experts
        for expert in range(4):
            rows = expected[f"{key}.{expert}"]
            if len(rows):
                agrees(found.inputs[key], rows, expert)
            else:
                assert not found.inputs[key].counts[expert] and (found.inputs[key].importance()[expert] == 1).all()


def test_experts_whose_weights_are_transposed(tmp_path):
    config = transformers.GptOssConfig(
        vocab_size=160, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention"], sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path)
    calibrated.add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    found = calibrate(tmp_path, [tmp_path / "text.txt"], **FEW)
    down, up = (found.inputs[f"model.layers.1.mlp.experts.{leaf}"] for leaf in ("down_proj", "gate_up_proj"))
    assert found.about.streamed and up.counts.sum() == 2 * 72 and (down.counts == up.counts).all()
    assert up.sum2.shape == (4, 64) and up.sum2.any() and down.sum2.any()


def test_hessians_are_sums_of_products(tmp_path):
    folder, path = calibrated.save("llama-untied", tmp_path / "hf")
    found = calibrate(folder, [path], tmp_path / "s.safetensors", hessians="[kv]_proj|down_proj", **FEW)
    expected = calibrated.whole(architectures.load("llama-untied", folder), cut(folder, path))
    assert sum(each.hessian is not None for each in found.inputs.values()) == 6
    keys, values = (found.inputs[f"model.layers.1.self_attn.{each}_proj.weight"].hessian for each in "kv")
    assert keys is values  # they have the same inputs
    for key, each in found.inputs.items():
        if each.hessian is not None:
            np.testing.assert_allclose(each.hessian[0], expected[key].T @ expected[key], rtol=1e-3, atol=1e-3)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    folder, path = calibrated.save("t5", tmp_path / "hf")
    whole = calibrate(folder, [path], tmp_path / "whole.safetensors", **FEW)
    target, output, ran = tmp_path / "s.safetensors", Forward.output, []

    def stop(self, name, sample, *angle):
        if len(self.done) == 2 and sample == 1:
            raise KeyboardInterrupt
        return output(self, name, sample, *angle)

    monkeypatch.setattr(Forward, "output", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(folder, [path], target, **FEW)
    assert not target.exists() and os.path.isdir(str(target) + PARTIAL)

    def count(self, name, sample, *angle):
        ran.append(name)
        return output(self, name, sample, *angle)

    monkeypatch.setattr(Forward, "output", count)
    calibrate(folder, [path], target, **FEW)
    assert list(dict.fromkeys(ran)) == ["decoder.block.0", "decoder.block.1"]
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not os.path.exists(str(target) + PARTIAL) and files.load(str(target)).digest == whole.digest


def test_what_was_done_for_other_arguments_is_not_used(tmp_path, monkeypatch):
    folder, path = calibrated.save("llama-tied", tmp_path / "hf")
    target, output, ran = tmp_path / "s.safetensors", Forward.output, []

    def stop(self, name, sample, *angle):
        if self.done:
            raise KeyboardInterrupt
        return output(self, name, sample, *angle)

    monkeypatch.setattr(Forward, "output", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(folder, [path], target, **FEW)
    monkeypatch.setattr(Forward, "output", lambda self, name, *i: ran.append(name) or output(self, name, *i))
    calibrate(folder, [path], target, **FEW, seed=1)
    assert "model.layers.0" in ran


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    folder, path = calibrated.save("llama-tied", tmp_path / "hf")
    other = tmp_path / ("s.safetensors" + PARTIAL)
    other.mkdir()
    (other / "mine").write_text("kept")
    with pytest.raises(WriteError, match="is in the way"):
        calibrate(folder, [path], tmp_path / "s.safetensors", **FEW)
    assert (other / "mine").read_text() == "kept"


def test_a_model_whose_layers_share_weights_is_run_whole(tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=160, hidden_size=64, embedding_size=32, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64, num_hidden_groups=1,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    calibrated.add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    found = calibrate(tmp_path, [tmp_path / "text.txt"], **FEW)
    model = transformers.AlbertModel.from_pretrained(tmp_path).eval()
    expected = calibrated.whole(model, cut(tmp_path, tmp_path / "text.txt"))
    assert not found.about.streamed
    for key, each in found.inputs.items():
        agrees(each, expected[key])
    assert found.inputs["encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"].tokens == 3 * 72


def test_lists_of_lists_of_blocks(tmp_path):
    config = transformers.FunnelConfig(vocab_size=160, block_sizes=[1, 2], num_decoder_layers=1, d_model=32, n_head=2,
                                       d_head=16, d_inner=64)  # fmt: skip
    transformers.FunnelBaseModel(config).save_pretrained(tmp_path)
    calibrated.add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    found = calibrate(tmp_path, [tmp_path / "text.txt"], **FEW)
    model = transformers.FunnelBaseModel.from_pretrained(tmp_path).eval()
    expected = calibrated.whole(model, cut(tmp_path, tmp_path / "text.txt"))
    for key, rows in expected.items():
        agrees(found.inputs[key], rows)


def test_a_layer_that_no_token_reaches_is_named_and_counts_alike(tmp_path):
    _, path = calibrated.save("mixtral", tmp_path / "hf")
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**architectures._LLAMA),
        vision_config=transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                                    num_attention_heads=2, image_size=16, patch_size=8),
    )  # fmt: skip
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    calibrated.add_tokenizer(tmp_path / "llava")
    found = calibrate(tmp_path / "llava", [path], **FEW)
    assert found.about.streamed and found.unreached
    assert all("vision" in name or "projector" in name for name in found.unreached)
    weight = next(name for name in found.unreached if "fc1" in name)
    assert (found.inputs[weight].importance() == np.ones(32)).all()


def test_nan_is_an_error_that_names_the_layer(tmp_path):
    folder, path = calibrated.save("llama-untied", tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.post_attention_layernorm.weight"] += 1e38
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"model\.layers\.1\.mlp\.\w+\.weight.*not finite"):
        calibrate(folder, [path], **FEW)


def test_a_model_without_a_tokenizer_says_what_to_do(tmp_path):
    folder, path = calibrated.save("llama-untied", tmp_path / "hf")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SourceError, match=r"holds no tokenizer.*put a tokenizer\.json"):
        calibrate(folder, [path], **FEW)


def test_an_aibit_file_and_a_gguf_file_are_sources(tmp_path, fixtures):
    folder, path = fixtures / "models" / "tiny-llama", fixtures / "models" / "heldout.txt"
    aibit.convert(folder, tmp_path / "m.aibit", scheme="keep")
    first, second = (calibrate(each, [path], **FEW) for each in (folder, tmp_path / "m.aibit"))
    assert first.inputs.keys() == second.inputs.keys() and first.about.source != second.about.source
    for name, each in first.inputs.items():
        assert (each.sum2 == second.inputs[name].sum2).all()


def test_the_text_that_ships_with_the_package_is_used_without_one(fixtures, tmp_path):
    found = calibrate(fixtures / "models" / "tiny-llama", length=64)
    assert found.about.samples == 100 and found.about.names == ("default_text.txt",)


def test_threads_do_not_change_statistics_of_float32(tmp_path):
    folder, path = calibrated.save("llama-untied", tmp_path / "hf")
    before, digests = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            digests.add(calibrate(folder, [path], **FEW).digest)
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


def test_an_existing_file_is_not_replaced(tmp_path):
    (tmp_path / "s.safetensors").write_bytes(b"")
    with pytest.raises(WriteError, match="exists"):
        calibrate(tmp_path, (), tmp_path / "s.safetensors")


def test_the_file_says_what_it_is_of(tmp_path, fixtures):
    path = tmp_path / "s.safetensors"
    calibrate(fixtures / "models" / "tiny-llama", [fixtures / "models" / "heldout.txt"], path, **FEW, threshold=0.7)
    about = json.loads(files.SafetensorsFile(str(path)).metadata["about"])
    assert about["tokens"] == 72 and about["threshold"] == 0.7 and about["architecture"] == "LlamaForCausalLM"


def test_a_model_that_takes_no_text_is_an_error(tmp_path):
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                    image_size=16, patch_size=8)  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path)
    calibrated.add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    with pytest.raises(LoadError, match="ViTModel cannot be run on text"):
        calibrate(tmp_path, [tmp_path / "text.txt"], **FEW)


def test_texts_are_told_from_statistics(tmp_path):
    folder, path = calibrated.save("llama-untied", tmp_path / "hf")
    statistics = calibrate(folder, [path], tmp_path / "s.safetensors", samples=2, length=16)
    calibrate(folder, [path], tmp_path / "i.dat", samples=2, length=16)
    assert are_texts("default") and are_texts(path) and are_texts([path, path])
    assert not any(map(are_texts, (statistics, tmp_path / "s.safetensors", [str(tmp_path / "i.dat")])))
