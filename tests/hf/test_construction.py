"""Models without weights: devices, dtypes and buffers are those of ``from_pretrained``."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf

from aibit_format.hf import compat, construction
from aibit_format.hf.config import empty_model
from aibit_format.hf.limits import Limits
from tests.support import architectures

LIMITS = Limits(1000, 1 << 20)
GPTJ = (tf.GPTJForCausalLM, lambda: tf.GPTJConfig(vocab_size=160, n_embd=64, n_layer=2, n_head=4, rotary_dim=8))
M2M = (tf.M2M100Model, lambda: tf.M2M100Config(
    vocab_size=160, d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
    encoder_attention_heads=4, decoder_attention_heads=4))  # fmt: skip
MODELS = {**architectures.MODELS, "gptj": GPTJ, "m2m_100": M2M}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_an_empty_model_has_the_tensors_of_from_pretrained(name, dtype, tmp_path):
    family, make_config = MODELS[name]
    config = make_config()
    family(copy.deepcopy(config)).to(dtype).save_pretrained(tmp_path)
    expected = family.from_pretrained(tmp_path, dtype=dtype)
    config.dtype = dtype
    found = empty_model(config, family.__name__, LIMITS)
    in_float32 = compat.float32_names(found)  # which is applied when weights are placed
    assert {
        key: (value.shape, torch.float32 if in_float32(key) else value.dtype)
        for key, value in found.named_parameters(remove_duplicate=False)
    } == {key: (value.shape, value.dtype) for key, value in expected.named_parameters(remove_duplicate=False)}
    assert all(value.device.type == "meta" for value in found.parameters())
    buffers = dict(found.named_buffers())
    assert buffers.keys() == dict(expected.named_buffers()).keys()
    for key, value in expected.named_buffers():
        assert buffers[key].device.type == "cpu" and buffers[key].dtype is value.dtype
        assert torch.equal(buffers[key], value), key
    assert found.config.dtype is dtype and found.dtype is dtype


def test_buffers_are_not_computed_in_half_precision():
    config = GPTJ[1]()
    config.dtype = torch.float16
    half = dict(empty_model(config, "GPTJForCausalLM", LIMITS).named_buffers())
    config = GPTJ[1]()
    config.dtype = torch.float32
    for key, value in empty_model(config, "GPTJForCausalLM", LIMITS).named_buffers():
        assert torch.equal(half[key], value.to(half[key].dtype)), key


class Made(torch.nn.Module):
    """Parameters and buffers made in many ways."""

    def __init__(self):
        super().__init__()
        self.left = torch.nn.Parameter(torch.ones(3))
        self.named = torch.nn.Parameter(torch.ones(3, dtype=torch.float32))
        self.old = torch.nn.Parameter(torch.Tensor(3))
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("literal", torch.tensor([1.5, 2.5]))
        self.register_buffer("counts", torch.arange(4))
        self.register_buffer("ratio", torch.arange(4) / 2)
        self.register_buffer("exact", torch.arange(4).float())
        self.register_buffer("asked", self.ask())
        self.register_buffer("written", torch.zeros(3).fill_(2))
        self.register_buffer("empty", torch.empty(3))
        self.register_buffer("on_cpu", torch.ones(2, device="cpu"))
        self.register_buffer("legacy", torch.Tensor([True]))
        self.buffer = torch.nn.Buffer(torch.tensor(0.5))
        self.legacy_buffer = torch.nn.Buffer(torch.Tensor([True]), persistent=False)
        self.twice = torch.nn.Identity()
        self.twice.register_buffer("literal", self.literal)

    def ask(self):
        return torch.arange(4).float().to(torch.get_default_dtype())


def made(dtype):
    with construction.OnMeta(dtype, 100):
        module = Made()
    return module, construction.finish(module, dtype, 1 << 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_that_are_left_to_torch_are_those_of_a_default(dtype):
    module, _ = made(dtype)
    parameters = dict(module.named_parameters())
    assert {name for name, value in parameters.items() if value.dtype is not dtype} == (
        set() if dtype is torch.float32 else {"named"}
    )
    assert all(value.device.type == "meta" for value in parameters.values())
    buffers = dict(module.named_buffers())
    assert {name for name, value in buffers.items() if value.dtype is not dtype} == {"counts"} | (
        set() if dtype is torch.float32 else {"exact"}
    )


def test_buffers_of_plain_values_are_real_and_others_wait_for_who_computes_them():
    module, others = made(torch.bfloat16)
    assert module.literal.tolist() == [1.5, 2.5] and module.counts.tolist() == [0, 1, 2, 3]
    assert module.twice.literal is module.literal and module.legacy.tolist() == [1.0]
    assert module.buffer.item() == 0.5 and module.legacy_buffer.tolist() == [1.0]
    waiting = {"ratio", "exact", "asked", "written", "empty"}
    assert {name for name, value in module.named_buffers() if value.device.type == "meta"} == waiting
    with construction.zeros_in(others), torch.no_grad():
        module.ratio.copy_(torch.arange(4) / 2)
        module.written = torch.ones(3)
    assert module.ratio.tolist() == [0.0, 0.5, 1.0, 1.5] and module.written.tolist() == [1.0] * 3
    assert {name for name, value in module.named_buffers() if value.device.type == "meta"} == waiting - {
        "ratio", "written",
    }  # fmt: skip


def test_an_empty_model_is_the_same_in_inference_mode():
    config = M2M[1]()
    config.dtype = torch.bfloat16
    with torch.inference_mode():
        found = dict(empty_model(config, "M2M100Model", LIMITS).named_buffers())
    for key, value in empty_model(config, "M2M100Model", LIMITS).named_buffers():
        assert not found[key].is_inference() and torch.equal(found[key], value)
