"""Each architecture, converted as llama.cpp does it: in as the model it was made from, and out as it came.

transformers' own loader and llama.cpp read the same files.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.formats.gguf.architectures import ARCHITECTURES, KNOWN, of_file
from aibit_format.formats.gguf.file import GGUFFile
from tests.support.gguf_conversion import CONFIGS, IDS, convert, embedding, llama_cpp, model_of, server
from tests.support.gguf_models import written

transformers.utils.logging.disable_progress_bar()

# Those that transformers' own loader reads as the same model, and sizes that it always has by default. It knows neither
# the others' architectures, nor that Phi-3 rotates a part of a head, nor Qwen2 MoE's matrix of one row.
LOADED = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 128}, "gemma2": {}, "starcoder2": {},
    "qwen3moe": {"moe_intermediate_size": 768}, "qwen35moe": {}, "minimax-m2": {}, "t5 gated": {},
}  # fmt: skip


SPLIT = [name for name in CONFIGS if name.startswith("deepseek2") and "whole" not in name]
# Tensors of which the values are kept, and not the blocks: transformers has what makes the keys of DeepSeek's heads
# together with what makes the values, which is not turned.
DECODED = {name: lambda key: "attn_k_b" in key or "attn_v_b" in key for name in SPLIT}

ENCODERS = [name for name in CONFIGS if name.split()[0] in ("t5encoder", "bert")]
UNSERVED = [name for name in CONFIGS if name.split()[0] == "t5"]


def logits(model) -> torch.Tensor:
    """What a model makes of ids: logits, or states if it has no head. A decoder gets the first of them."""
    ids = torch.tensor([IDS])
    decoder = {"decoder_input_ids": ids[:, :4]} if hasattr(model, "decoder") else {}
    with torch.no_grad():
        return model(ids, **decoder)[0].float()


def weights(path) -> dict[str, np.ndarray]:
    with aibit.open(path, verify="full") as file:
        values = {name: (file.dequantize(name), file.info(name).transposed) for name in file}
    return {name: np.swapaxes(value, -1, -2) if transposed else value for name, (value, transposed) in values.items()}


def test_every_architecture_of_the_table_is_converted_here():
    assert {name.split()[0] for name in CONFIGS} == set(KNOWN)
    assert {CONFIGS[name]().model_type for name in CONFIGS} == {each.model_type for each in ARCHITECTURES}


def test_every_row_of_the_table_is_what_the_file_of_a_case_is_taken_for(tmp_path):
    """Several rows have one name of GGUF's; of Mistral's, files say that they are Llamas, and models go out by it."""
    found = []
    for name in CONFIGS:
        convert(model_of(name), name, tmp_path / "m.gguf", tokens=False)
        file = GGUFFile(str(tmp_path / "m.gguf"))
        found.append(of_file(file.metadata, {tensor.name for tensor in file.tensors}))
    never = [each.architecture for each in ARCHITECTURES if not any(each is chosen for chosen in found)]
    assert never == ["MistralForCausalLM"] and None not in found


@pytest.mark.parametrize("name", CONFIGS)
def test_floats_are_the_model_that_they_were_made_from(name, tmp_path):
    model = model_of(name)
    data = convert(model, name, tmp_path / "m.gguf")
    report = aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", scheme="keep")
    assert not report.unused and not report.dropped_keys
    loaded = aibit.load_model(tmp_path / "m.aibit")
    assert torch.allclose(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    if "whole" in name:  # floats go out in the newer form, blocks in that which keeps them
        data = convert(model, name.replace(" whole", ""), tmp_path / "newer.gguf")
    again = written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    found = {tensor.name: again.read(tensor).tobytes() for tensor in again.tensors}
    assert found.keys() == data.keys()
    for key, value in found.items():
        if key.endswith("ssm_a"):  # an exponential of a logarithm
            assert np.allclose(np.frombuffer(value, "<f4"), np.frombuffer(data[key], "<f4"), rtol=1e-6)
        else:
            assert value == data[key], key


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_go_in_and_out_unchanged(name, kind, tmp_path):
    model = model_of(name)
    data = convert(model, name, tmp_path / "m.gguf", kind)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    # What the blocks hold, under the names of the model: the floats of the same file, rounded as gguf-py does it.
    held = weights(tmp_path / "m.aibit")
    for key, value in model.state_dict().items():
        if key in held:
            step = 1 / 127 if kind == "q8_0" else 1 / 7
            assert np.abs(held[key] - value.numpy()).max() <= value.abs().max() * step, key
    again = written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    found = {tensor.name: again.read(tensor).tobytes() for tensor in again.tensors}
    changed = {key for key in data if found[key] != data[key] and not key.endswith("ssm_a")}
    decoded = DECODED.get(name, lambda key: False)
    assert changed == {key for key in data if decoded(key)}


@pytest.mark.parametrize("name", LOADED)
def test_transformers_loads_the_same(name, tmp_path):
    convert(model_of(name, **LOADED[name]), name, tmp_path / "m.gguf", "q8_0")
    family = transformers.AutoModelForSeq2SeqLM if name.startswith("t5") else transformers.AutoModelForCausalLM
    theirs = family.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    state, held = theirs.state_dict(), weights(tmp_path / "m.aibit")
    for key, value in held.items():
        assert np.array_equal(value, state[key].numpy()), key


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_writes_the_same_before_and_after(name, tmp_path):
    pytest.importorskip("xllamacpp", reason="llama.cpp comes with xllamacpp, which is not installed")
    if name in UNSERVED:
        pytest.skip("llama.cpp's server has no decoder beside an encoder")
    model = model_of(name)
    convert(model, name, tmp_path / "m.gguf")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", scheme="keep")
    written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    if name in ENCODERS:
        before, after = (embedding(server(tmp_path / file, encoder=True)) for file in ("m.gguf", "again.gguf"))
        mean = logits(aibit.load_model(tmp_path / "m.aibit"))[0].mean(0)
        assert torch.equal(before, after) and torch.dist(mean / mean.norm(), after) < 2e-3
        return
    (text, before), (again, after) = (llama_cpp(server(tmp_path / file)) for file in ("m.gguf", "again.gguf"))
    assert text == again and before.keys() == after.keys()
    assert all(abs(before[i] - after[i]) < 1e-4 for i in before)
    wanted = logits(aibit.load_model(tmp_path / "m.aibit"))[0, -1].log_softmax(-1)
    # llama.cpp looks up GELU in a table of float16.
    assert max(abs(wanted[i].item() - value) for i, value in after.items()) < 5e-3
