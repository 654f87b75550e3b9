"""What layers are given is added up, and the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aibit_format.calibrate.hooks import listening, replaced_forward, sums_of
from aibit_format.hf.meta_model import ParameterSpec


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 5, 4))

    def forward(self, x, expert):
        return nn.functional.linear(x, self.up[expert])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.experts = nn.Linear(4, 4), nn.Linear(4, 2), Experts()

    def forward(self, x):
        self.k(self.q(x))
        self.k(input=x)  # by its name
        self.experts(x, 2)


SPECS = {
    "q.weight": ParameterSpec("q.weight", (4, 4), "f32", "linear"),
    "k.weight": ParameterSpec("k.weight", (2, 4), "f32", "linear"),
    "experts.up": ParameterSpec("experts.up", (3, 5, 4), "f32", "experts"),
    "norm": ParameterSpec("norm", (4,), "f32", "other"),
}


def test_inputs_of_layers_and_experts_are_summed_up():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(7, 4)
    sums = sums_of(SPECS, SPECS, lambda name: name == "q.weight", "cpu")
    assert sums.keys() == {"q.weight", "k.weight", "experts.up"}
    with torch.no_grad(), listening(model, SPECS, sums):
        model(x)
        hidden = nn.functional.linear(x, model.q.weight, model.q.bias)
    found = {name: each.finished() for name, each in sums.items()}
    assert torch.allclose(torch.from_numpy(found["q.weight"].sum[0]), x.double().sum(0))
    assert found["q.weight"].hessian is not None and found["k.weight"].hessian is None
    wanted = hidden.double().square().sum(0) + x.double().square().sum(0)
    assert torch.allclose(torch.from_numpy(found["k.weight"].sum2[0]), wanted)
    assert found["experts.up"].counts.tolist() == [0, 0, 7] and found["k.weight"].counts.tolist() == [14]
    with torch.no_grad():
        model(x)
    assert sums["q.weight"].finished().counts.tolist() == [7]  # nobody listens any more


def test_a_forward_is_put_back_after_an_error():
    model = Experts()
    with pytest.raises(KeyError), replaced_forward(model, lambda: 1):
        assert model() == 1
        raise KeyError
    assert model.forward.__func__ is Experts.forward
