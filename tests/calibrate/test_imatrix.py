"""Statistics go into llama.cpp's imatrix and come back, under the names of GGUF."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers

from aibit_format.calibrate.calibrate import calibrate, statistics_of
from aibit_format.calibrate.statistics import importance
from aibit_format.errors import SourceError
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from tests.support import calibrated

FEW = {"samples": 3, "length": 24}


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "mixtral", "bert"])
@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_importance_comes_back(name, suffix, tmp_path):
    folder, path = calibrated.save(name, tmp_path / "hf")
    found = calibrate(folder, [path], tmp_path / f"x{suffix}", **FEW)
    source = open_source(folder)
    again = statistics_of(source, meta_model_of(source), tmp_path / f"x{suffix}")
    ours, theirs = importance(found), importance(again)
    assert len(theirs) >= 0.9 * len(ours) and again.inputs.keys() <= found.inputs.keys()
    for key, values in theirs.items():
        if suffix == ".dat" and found.inputs.get(key) and found.inputs[key].experts:
            seen = found.inputs[key].counts > 0
            np.testing.assert_allclose(values[seen], ours[key][seen], rtol=1e-5)
        else:
            np.testing.assert_allclose(values, ours[key], rtol=1e-5)


def test_names_are_those_of_llama_cpp(tmp_path):
    folder, path = calibrated.save("mixtral", tmp_path / "hf")
    found = calibrate(folder, [path], tmp_path / "x.gguf", **FEW)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors}
    up = found.inputs["model.layers.0.mlp.experts.gate_up_proj"]
    for part in ("ffn_gate_exps", "ffn_up_exps"):
        np.testing.assert_allclose(tensors[f"blk.0.{part}.weight.in_sum2"], up.sum2, rtol=1e-6)
        assert tensors[f"blk.0.{part}.weight.counts"][:, 0].tolist() == up.counts.tolist()
    names = {f"blk.{i}.{part}.weight" for i in (0, 1)
             for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")}
    assert {name.rpartition(".")[0] for name in tensors} == names | {"output.weight"}  # fmt: skip


def test_columns_are_in_the_order_of_gguf(tmp_path):
    config = transformers.Qwen3_5TextConfig(
        vocab_size=160, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3_5ForCausalLM(config).save_pretrained(tmp_path)
    calibrated.add_tokenizer(tmp_path)
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    found = calibrate(tmp_path, [tmp_path / "text.txt"], tmp_path / "x.gguf", **FEW)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors}
    ours = found.inputs["model.layers.0.linear_attn.out_proj.weight"].sum2[0].reshape(2, 2, 8)
    expected = ours.swapaxes(0, 1).ravel()  # the first value head of each key head, then the second
    np.testing.assert_allclose(tensors["blk.0.ssm_out.weight.in_sum2"][0], expected, rtol=1e-6)
    source = open_source(tmp_path)
    again = statistics_of(source, meta_model_of(source), tmp_path / "x.gguf")
    np.testing.assert_allclose(
        again.inputs["model.layers.0.linear_attn.out_proj.weight"].sum2[0].reshape(2, 2, 8), ours, rtol=1e-6
    )


def test_an_imatrix_of_another_model(tmp_path):
    folder, path = calibrated.save("llama-tied", tmp_path / "hf")
    calibrate(folder, [path], tmp_path / "x.gguf", **FEW)
    other, _ = calibrated.save("bert", tmp_path / "bert")
    source = open_source(other)
    with pytest.raises(SourceError, match="an imatrix of another model"):
        statistics_of(source, meta_model_of(source), tmp_path / "x.gguf")


def test_an_architecture_that_gguf_lacks(tmp_path):
    config = transformers.CTRLConfig(vocab_size=160, n_positions=64, n_embd=64, dff=64, n_layer=2, n_head=4)
    transformers.CTRLLMHeadModel(config).save_pretrained(tmp_path / "hf")
    calibrated.add_tokenizer(tmp_path / "hf")
    (tmp_path / "text.txt").write_text(calibrated.TEXT)
    with pytest.raises(SourceError, match="GGUF has no names for a CTRLLMHeadModel"):
        calibrate(tmp_path / "hf", [tmp_path / "text.txt"], tmp_path / "x.gguf", **FEW)
