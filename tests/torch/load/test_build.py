"""Models are loaded and used as transformers' own."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import LoadError
from tests.support import architectures
from tests.support.memory import parameters_outside

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_several_devices_are_refused_clearly(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with pytest.raises(LoadError, match="one device"):
        aibit.load_model(tmp_path / "m.aibit", device_map={"model": 0, "lm_head": "cpu"})
    with pytest.raises(LoadError, match="one device"):
        aibit.load_model(tmp_path / "m.aibit", device_map="balanced")
    assert aibit.load_model(tmp_path / "m.aibit", device_map={"": "cpu"}) is not None
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="no CUDA device"):
            aibit.load_model(tmp_path / "m.aibit", device="cuda")


def test_the_loaded_model_can_be_saved_by_transformers(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit")
    expected = architectures.output(model, "llama-untied")
    model.save_pretrained(tmp_path / "again")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again", device_map={"": "cpu"}).eval()
    assert torch.equal(architectures.output(again, "llama-untied"), expected)


def test_a_file_without_a_model_says_so(fixtures):
    with pytest.raises(LoadError, match="no model"):
        aibit.load_model(fixtures / "container" / "dtypes.aibit")
    with pytest.raises(LoadError, match="no tokenizer"):
        aibit.load_tokenizer(fixtures / "container" / "dtypes.aibit")


SCHEMES = ("bf16", "int8", "nf4", "int8-absmax", "cluster,bits=4", "gguf:q8_0")


def forward(model):
    return architectures.output(model, "llama-untied")


def merge(model):
    """Do as PEFT does to merge an adapter into a layer that is not quantized."""
    head = model.lm_head
    assert type(head) is torch.nn.Linear
    head.weight.data += 0.5


def train_norms(model):
    chosen = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    for parameter in chosen:
        parameter.requires_grad_(True)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(chosen, 0.1).step()


def fill_buffers_and_scales(model):
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("scale", "codebook")):
                buffer.mul_(2)
        model.model.embed_tokens.weight[architectures.inputs("llama-untied")["input_ids"][0, 0]].zero_()


WRITERS = {"merge": merge, "train norms": train_norms, "fill": fill_buffers_and_scales}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_that_is_written_to_leaves_the_file_and_its_other_models_alone(scheme, write, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    tensors = {"lm_head": "f32", "embed_tokens": "f32"}
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme, tensors=tensors)
    content = (tmp_path / "m.aibit").read_bytes()
    with aibit.open(tmp_path / "m.aibit") as file:
        written, other = aibit.load_model(file), aibit.load_model(file)
        expected = forward(other)
        assert torch.equal(forward(written), expected)
        write(written)
        assert not torch.equal(forward(written), expected)
        assert torch.equal(forward(other), expected)
        assert file.verify().level == "full"  # of the file's bytes, not of the pages that were written to
        assert torch.equal(forward(aibit.load_model(file)), expected)
    assert (tmp_path / "m.aibit").read_bytes() == content


def test_bytes_in_memory_are_not_written_to(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    content = (tmp_path / "m.aibit").read_bytes()
    model = aibit.load_model(aibit.open(content))
    merge(model)
    assert content == (tmp_path / "m.aibit").read_bytes()


@pytest.mark.parametrize("scheme", ["bf16", "int8", "nf4", "nf4,nested=1", "nf4-cpu", "int8-absmax", "cluster,bits=4"])
def test_a_state_dict_is_loaded(scheme, tmp_path):
    """Into a model that has run: what it computes is that of the other from then on, scales among the rest."""
    for seed in (0, 1):
        architectures.save("llama-untied", tmp_path / f"hf{seed}", seed=seed)
        aibit.convert(tmp_path / f"hf{seed}", tmp_path / f"{seed}.aibit", scheme=scheme)
    model, other = aibit.load_model(tmp_path / "0.aibit"), aibit.load_model(tmp_path / "1.aibit")
    assert not torch.equal(forward(model), forward(other))
    model.load_state_dict(other.state_dict())
    assert torch.equal(forward(model), forward(other))
    model.load_state_dict(model.state_dict())
    assert torch.equal(forward(model), forward(other))


def test_a_trainable_model_learns(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    content = (tmp_path / "m.aibit").read_bytes()
    model = aibit.load_model(tmp_path / "m.aibit", trainable=True)
    with aibit.open(tmp_path / "m.aibit") as file:
        floats = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
        assert set(floats) <= set(parameters_outside(model, file))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == floats
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = architectures.inputs("llama-tied")["input_ids"]
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], 1e-2)
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert (tmp_path / "m.aibit").read_bytes() == content
    assert not any(parameter.requires_grad for parameter in aibit.load_model(tmp_path / "m.aibit").parameters())


def test_activations_are_those_that_were_asked_for(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int4-group,group=32")
    outputs = {}
    for activations in (None, "float32", "int16", "int8"):
        model = aibit.load_model(tmp_path / "m.aibit", activations=activations)
        with torch.no_grad():  # few rows: many are decoded, and rounded to nothing
            outputs[activations] = model(torch.tensor([[1, 2, 3]])).logits.float()
    largest = outputs["float32"].abs().max()
    assert (outputs["int16"] - outputs["float32"]).abs().max() < 0.02 * largest  # models of 16 bits round more
    assert 0 < (outputs["int8"] - outputs["float32"]).abs().max() < 0.1 * largest
    with pytest.raises(LoadError, match="activations 'int4', one of float32, int16, int8"):
        aibit.load_model(tmp_path / "m.aibit", activations="int4")
