"""Layers that lie together give one product."""

from __future__ import annotations

import copy
import threading

import bitsandbytes
import numpy as np
import pytest
import torch
from torch import nn

import aibit_format as aibit
from aibit_format.torch.layers import fused
from aibit_format.torch.layers.dequantized import QuantizedLinear
from aibit_format.torch.layers.linear8bit import Linear8bitLt
from tests.support import architectures
from tests.support.linear8bit import DTYPES
from tests.support.linear8bit import _wide_models as _wide_models

ATTENTION = "model.layers.1.self_attn"


@pytest.mark.parametrize("weight_only", [False, True], ids=["int8", "weight-only"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_joined_layers_give_what_they_give_alone(name, dtype, weight_only, tmp_path, monkeypatch):
    architectures.save(name, tmp_path / "hf", DTYPES[dtype])
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", weight_only=weight_only)
    together = {id(m.fused): m.fused for m in model.modules() if getattr(m, "fused", None)}
    assert [len(each.layers) for each in together.values()] == {
        "llama": [3, 2, 3, 2], "qwen2": [3, 2, 3, 2], "opt": [],
    }[name]  # fmt: skip
    outputs = [architectures.output(model, name)]
    assert not any(each._apart or each._thread.__dict__ for each in together.values())
    for module in model.modules():
        if hasattr(module, "fused"):
            module.fused = None
    outputs.append(architectures.output(model, name))
    assert torch.equal(*outputs)


@pytest.fixture(params=[False, True], ids=["int8", "weight-only"])
def model(request, tmp_path):
    architectures.save("qwen2", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    return aibit.load_model(tmp_path / "m.aibit", weight_only=request.param)


def heads(model):
    attention = model.get_submodule(ATTENTION)
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def alone(layer, x):
    """What the layer gives by itself."""
    kept, layer.fused = layer.fused, None
    try:
        return layer(x)
    finally:
        layer.fused = kept


@torch.no_grad()
def test_the_first_call_multiplies_for_the_others(model, monkeypatch):
    q, k, v = heads(model)
    assert isinstance(q, Linear8bitLt | QuantizedLinear) and q.fused is k.fused is v.fused
    x = torch.randn(2, 5, 128)
    expected = [alone(layer, x) for layer in (q, k, v)]
    calls = []
    kind = type(q)
    original = kind.products
    monkeypatch.setattr(kind, "products", lambda *args: calls.append(args[0]) or original(*args))
    found = [layer(x) for layer in (q, k, v)]
    assert calls == [q] and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(each.is_contiguous() for each in found)
    k(x)
    assert calls == [q, k]  # what waited was given away


@torch.no_grad()
def test_calls_in_another_order_or_with_other_inputs_are_right(model):
    q, k, v = heads(model)
    x, y = torch.randn(2, 128), torch.randn(2, 128)
    for layer, given in ((v, x), (k, x), (q, x), (k, y), (v, x), (k, x), (q, y), (q, x), (k, x), (v, x)):
        assert torch.equal(layer(given), alone(layer, given))
    q(x)
    x.add_(1)  # k's part was made of what x held before
    assert torch.equal(k(x), alone(k, x))


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_inputs_changed_in_place_in_inference_mode_are_multiplied_anew(made, model):
    x = torch.randn(2, 128)
    with torch.inference_mode():
        x = x if made == "outside" else x.clone()
        q, k, v = heads(model)
        q(x)
        x.add_(1)  # of a tensor made in this mode torch does not count writes
        assert torch.equal(k(x), alone(k, x)) and torch.equal(v(x), alone(v, x))
        found = [layer(x) for layer in (q, k, v)]  # unchanged, the parts are used
        assert all(torch.equal(a, alone(layer, x)) for a, layer in zip(found, (q, k, v), strict=True))


@torch.no_grad()
def test_layers_whose_parts_are_not_fetched_stay_apart_from_then_on(model):
    q, k, _ = heads(model)
    x, other = torch.randn(2, 128), torch.randn(3, 128)
    for _ in range(2):  # attention to another sequence
        assert torch.equal(q(x), alone(q, x)) and torch.equal(k(other), alone(k, other))
    assert q.fused._apart


@torch.no_grad()
def test_a_new_weight_is_used(model):
    q, k, v = heads(model)
    x = torch.randn(2, 128)
    before = [layer(x) for layer in (q, k, v)]
    if isinstance(k, Linear8bitLt):
        weight = bitsandbytes.nn.Int8Params(torch.randn(k.weight.shape), requires_grad=False, has_fp16_weights=False)
        k.weight = weight.to("cpu")
    else:
        k.codes = k.codes.flip(0)
    after = [layer(x) for layer in (q, k, v)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert torch.equal(after[1], alone(k, x))


@torch.no_grad()
def test_threads_do_not_see_each_others_parts(model):
    q, k, v = heads(model)
    shared = torch.randn(4, 128)
    own = [torch.randn(4, 128) for _ in range(2)]
    wrong = []
    barrier = threading.Barrier(2)

    def work(mine):
        with torch.no_grad():
            for i in range(60):
                x = (shared, mine)[i % 2]
                barrier.wait()
                found = [layer(x) for layer in (q, k, v)]
                wrong.extend(1 for a, b in zip(found, expected[id(x)], strict=True) if not torch.equal(a, b))

    expected = {id(x): [alone(layer, x) for layer in (q, k, v)] for x in (shared, *own)}
    threads = [threading.Thread(target=work, args=(mine,)) for mine in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not q.fused._apart


def test_wrapped_layers_stay_joined_and_a_copy_does_not(model):
    """As adapters are put around layers: the layer is called from inside another module."""

    class Wrapped(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer, self.down = base, nn.Linear(128, 2)
            self.up = nn.Linear(2, base.out_features)

        def forward(self, x):
            return self.base_layer(x) + self.up(self.down(x))

    attention = model.get_submodule(ATTENTION)
    expected = architectures.output(copied := copy.deepcopy(model), "qwen2")
    assert all(layer.fused is None for layer in heads(copied)) and attention.q_proj.fused is not None
    assert torch.equal(architectures.output(model, "qwen2"), expected)
    for leaf in ("q_proj", "k_proj", "v_proj"):
        wrapped = Wrapped(getattr(attention, leaf))
        nn.init.zeros_(wrapped.up.weight)
        nn.init.zeros_(wrapped.up.bias)
        setattr(attention, leaf, wrapped)
    assert torch.equal(architectures.output(model, "qwen2"), expected)
    assert not attention.q_proj.base_layer.fused._apart
    model.train()
    ids = architectures.inputs("qwen2")["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert attention.v_proj.up.weight.grad.abs().sum() > 0


def test_the_state_dict_is_that_of_bitsandbytes(tmp_path):
    architectures.save("qwen2", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    architectures.output(model, "qwen2")
    after = model.state_dict()
    assert list(before) == list(after) and f"{ATTENTION}.q_proj.SCB" in before
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_only_planes_that_follow_each_other_are_joined(tmp_path):
    architectures.save("llama", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors={"layers.0.*k_proj": "int8-zp", "up_proj": "nf4"})
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(file)
    for i, together in ((0, False), (1, True)):
        names = [f"model.layers.{i}.self_attn.{leaf}.weight" for leaf in fused.TOGETHER[0]]
        layer, plane = model.model.layers[i], fused._codes([file.info(name) for name in names])
        assert (plane is not None) is (layer.self_attn.q_proj.fused is not None) is together
        assert layer.mlp.gate_proj.fused is None
        if plane is not None:
            codes = [file.planes(name)["codes"] for name in names]
            assert np.array_equal(file.view(plane), np.concatenate(codes))
