"""Weights where the system has no memory for copies of their pages: writing is an error, and not a signal."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.io import mapped
from aibit_format.torch import load_file, safe_open
from aibit_format.torch.read_only import ReadOnly
from tests.support import architectures
from tests.support.faults import python


@pytest.fixture
def strict(monkeypatch):
    """No memory for copies, as where overcommitting is switched off and the file is larger than what is left."""

    def refuses(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mapped, "_copied_on_write", refuses)


def written(model):
    """Return the weights that tests write to: plain ones, tied ones, and a plane."""
    layer = model.model.layers[0]
    found = [model.model.norm.weight, model.model.embed_tokens.weight, model.lm_head.weight]
    return [*found, *layer.mlp.up_proj._buffers.values()]


@pytest.mark.parametrize("scheme", ["bf16", "int8", "nf4", "int8-absmax", "cluster,bits=4"])
def test_a_model_runs_and_refuses_writes(scheme, tmp_path, strict):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme, tensors={"embed_tokens|lm_head": "f32"})
    model = aibit.load_model(tmp_path / "m.aibit")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    found = architectures.output(model, "llama-tied")
    assert type(found) is torch.Tensor and found.isfinite().all()
    with torch.no_grad():
        for weight in written(model):
            for write in (
                lambda w: w.add_(1), lambda w: w.data.zero_(), lambda w: w.detach().copy_(w), lambda w: w[0].fill_(1),
                lambda w: w.view(-1).__setitem__(0, 1), lambda w: torch.add(w, w, out=w),
                lambda w: torch._foreach_mul_([w], 2), lambda w: w.unbind()[0].mul_(2), lambda w: w.data.__iadd__(1),
                lambda w: torch.nn.init.zeros_(w),
            ):  # fmt: skip
                with pytest.raises(LoadError, match="read-only"):
                    write(weight)
            array = weight.detach().view(torch.uint8).numpy()
            assert not array.flags.writeable
            own = weight.clone().mul_(0)
            assert type(own) is torch.Tensor and type(weight * 2) is torch.Tensor
    with pytest.raises(LoadError, match="read-only"):
        model.load_state_dict(model.state_dict())
    with pytest.raises(LoadError, match="read-only"):
        ids = torch.tensor([[1, 2, 3]])
        model.model.norm.weight.requires_grad_(True)
        model(ids, labels=ids).loss.backward()
        torch.optim.AdamW([model.model.norm.weight]).step()


def test_a_trainable_model_learns_all_the_same(tmp_path, strict):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", trainable=True)
    ids = torch.tensor([[1, 2, 3]])
    before = model.model.norm.weight.detach().clone()
    model(ids, labels=ids).loss.backward()
    torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad]).step()
    assert not torch.equal(model.model.norm.weight, before)


def test_tensors_of_files_refuse_writes(tmp_path, strict):
    architectures.save("llama-tied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    with safe_open(tmp_path / "m.aibit") as file:
        found = [file.get_tensor("model.norm.weight"), file.get_slice("model.norm.weight")[2:4]]
    for tensor in (*found, load_file(tmp_path / "m.aibit")["model.norm.weight"]):
        assert type(tensor) is ReadOnly
        with pytest.raises(LoadError, match="read-only"):
            tensor += 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_on_memory_is_met_with_an_error(tmp_path):
    """A process that may not have as much memory as the file has, by a real limit of the system."""
    config = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    assert (tmp_path / "m.aibit").stat().st_size > 60e6
    program = """
        import resource, sys, torch
        import aibit_format as aibit
        from aibit_format.errors import LoadError
        aibit.load_model(sys.argv[1]).lm_head.weight.data.add_(1)
        used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + (20 << 20), -1))
        model = aibit.load_model(sys.argv[1])
        with torch.no_grad():
            assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
        try:
            model.lm_head.weight.data.add_(1)
        except LoadError as error:
            print(error)
    """
    assert "read-only" in python(program, tmp_path / "m.aibit")
