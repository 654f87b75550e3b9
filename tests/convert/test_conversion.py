"""What becomes of every tensor of a source."""

from __future__ import annotations

import json
import warnings

import gguf
import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.convert.convert import convert
from aibit_format.errors import SourceError
from tests.support import architectures
from tests.support.eight_bit import eight_bit

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_what_is_kept_and_what_is_quantized(tmp_path):
    architectures.save("gpt2", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    file = aibit.open(tmp_path / "m.aibit")
    schemes = {name: file.info(name).scheme.name for name in file}
    assert schemes["transformer.wte.weight"] == schemes["transformer.ln_f.bias"] == "f16"
    assert schemes["transformer.h.0.attn.c_attn.weight"] == "int8"
    conv = file.info("transformer.h.0.attn.c_attn.weight")
    assert conv.transposed and conv.shape == (192, 64)  # Conv1D holds [in, out]; rows are outputs here
    assert file.keys()[0] == "transformer.wte.weight" and file.keys()[-1] == "lm_head.weight"


def test_overrides_the_last_match_wins(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    rules = [("layers", "f16"), (r"layers\.1\.mlp", "int8"), ("lm_head", "int8"), ("embed", "bf16")]
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors=rules)
    file = aibit.open(tmp_path / "m.aibit")
    schemes = {name: file.info(name).scheme.name for name in file}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "f16"
    assert schemes["model.layers.1.mlp.up_proj.weight"] == "int8"
    assert schemes["lm_head.weight"] == "int8" and schemes["model.embed_tokens.weight"] == "bf16"
    model = aibit.load_model(file)
    assert model.model.embed_tokens.weight.dtype == torch.float32  # what the model computes in
    assert architectures.output(model, "llama-untied").isfinite().all()


def test_a_float32_checkpoint_of_a_half_precision_model_is_rounded_as_transformers_does(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.float32)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    reference = eight_bit(transformers.LlamaForCausalLM, tmp_path / "hf")
    model = aibit.load_model(tmp_path / "m.aibit")
    assert torch.equal(architectures.output(model, "llama-untied"), architectures.output(reference, "llama-untied"))


@pytest.mark.parametrize("name", ["a\x1b[31m", "a b", "__a", "\u00e9", "a'b"])
def test_a_name_that_no_file_can_hold_is_the_fault_of_the_source(name, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "of-nobody")
    writer.add_tensor(name, np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="rename it in the source") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    assert str(caught.value).isprintable() and not (tmp_path / "m.aibit").exists()
