"""Norms of models, replaced by compiled ones that give the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from aibit_format.torch.kernels import operators
from aibit_format.torch.layers.norms import FORMS, RMSNorm, replace_norms

pytestmark = pytest.mark.skipif(not operators.COMPILED, reason="the compiled code is not here")


class Model(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "form"), [(LlamaRMSNorm, 0), (Gemma3RMSNorm, 1), (Olmo2RMSNorm, 2)])
def test_each_kind_is_recognized_by_what_it_computes(kind, form, dtype):
    norm = kind(72, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight += torch.rand(72)
    model, weight = Model(norm).eval(), norm.weight
    replace_norms(model)
    assert type(model.norm) is RMSNorm and model.norm.form == FORMS[form] and model.norm.weight is weight
    assert model.norm.eps == model.norm.variance_epsilon == 1e-3 and not model.norm.training
    x = torch.randn(3, 5, 72, dtype=dtype)
    expected = norm(x)
    with torch.no_grad():
        assert torch.equal(model.norm(x), expected)
    x.requires_grad_()
    found = model.norm(x)  # with gradients, by torch
    assert torch.equal(found, expected)
    (found.float() ** 2).sum().backward()
    assert x.grad.isfinite().all() and weight.grad.isfinite().all()
    assert torch.equal(copy.deepcopy(model).norm(x), expected) and [*model.state_dict()] == ["norm.weight"]


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x, gate):
        return super().forward(x) * gate


def test_what_computes_something_else_or_in_float32_stays():
    hooked, several = LlamaRMSNorm(16), LlamaRMSNorm(16)
    hooked.register_forward_hook(lambda *_: None)
    several.bias = nn.Parameter(torch.zeros(16))
    norms = [CentredRMSNorm(16), GatedRMSNorm(16), nn.LayerNorm(16), hooked, several, LlamaRMSNorm(16).to("meta")]
    for norm in [*(each.to(torch.bfloat16) for each in norms), LlamaRMSNorm(16)]:
        weight = norm.weight
        model = Model(norm)
        replace_norms(model)
        assert model.norm is norm and norm.weight is weight
