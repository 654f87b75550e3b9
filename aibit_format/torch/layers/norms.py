"""Replaces a model's RMS norms by compiled ones, where they compute the same.

What a norm computes is not read from its class: each class is tried on numbers. Those of 16 bits alone are replaced, as
in float32 sums in another order show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..kernels import operators

_EPSILONS = ("variance_epsilon", "eps", "epsilon")  # names of the attribute
_SHORT = (torch.bfloat16, torch.float16)
_ROWS = 8  # of the numbers that a norm is tried on


@dataclass(frozen=True, slots=True)
class Form:
    """Describes a norm: x / sqrt(mean(x^2) + epsilon) * (offset + weight), rounded before the product or not."""

    offset: float
    rounds: bool

    def compute(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Compute the norm of x [..., columns]; in 16 bits with compiled code, unless gradients are wanted."""
        if x.dtype in _SHORT and operators.computes(x, weight):
            return operators.rms_norm(x, weight, epsilon, self.offset, self.rounds)
        wide = x.float()
        found = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        if self.rounds:
            return (weight + self.offset if self.offset else weight) * found.to(x.dtype)
        return (found * (self.offset + weight.float())).to(x.dtype)


FORMS = (Form(0.0, True), Form(1.0, False), Form(0.0, False))  # Llama's, Gemma's and OLMo 2's


class RMSNorm(nn.Module):
    """Divides rows by their root mean square, and multiplies them by a weight [columns]."""

    def __init__(self, weight: nn.Parameter, epsilon: float, form: Form) -> None:
        super().__init__()
        self.weight, self.eps, self.form = weight, epsilon, form

    @property
    def variance_epsilon(self) -> float:
        """Return epsilon, under the name that it has in many models."""
        return self.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the norm of x [..., columns], in its dtype."""
        return self.form.compute(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Return sizes and epsilon, as ``repr`` of the module shows them."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def replace_norms(model: nn.Module) -> None:
    """Put an ``RMSNorm`` with the same weight in the place of each module of a model that computes the same."""
    if not operators.COMPILED:
        return
    forms: dict[type, Form | None] = {}
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            weight, epsilon = _weight(norm), _epsilon(norm)
            if weight is None or epsilon is None or type(norm) is RMSNorm:
                continue
            if type(norm) not in forms:
                forms[type(norm)] = _form_of(norm, weight, epsilon)
            form = forms[type(norm)]
            if form is not None:
                module._modules[name] = RMSNorm(weight, epsilon, form).train(norm.training)


def _weight(norm: nn.Module) -> nn.Parameter | None:
    """Return the weight of a module that may be a norm; ``None`` for others, and for those that have or do more."""
    weight = norm._parameters.get("weight")
    has_more = len(norm._parameters) > 1 or norm._buffers or norm._modules
    if weight is None or has_more or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    usual = weight.dim() == 1 and weight.is_cpu and weight.dtype in _SHORT
    return weight if usual and type(norm).__name__.endswith("RMSNorm") else None


def _epsilon(norm: nn.Module) -> float | None:
    found = next((vars(norm)[name] for name in _EPSILONS if name in vars(norm)), None)
    return float(found) if isinstance(found, int | float) else None


@torch.no_grad()
def _form_of(norm: nn.Module, kept: nn.Parameter, epsilon: float) -> Form | None:
    """Return the form that gives the same numbers as a norm whose weight is ``kept``; ``None`` if none does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, len(kept), generator=generator).to(kept.dtype)
    weight = nn.Parameter((torch.rand(len(kept), generator=generator) + 0.5).to(kept.dtype), requires_grad=False)
    norm._parameters["weight"] = weight
    try:
        expected = norm(x)
    except (TypeError, ValueError, RuntimeError):  # it takes more than one tensor
        return None
    finally:
        norm._parameters["weight"] = kept
    if not isinstance(expected, torch.Tensor) or expected.dtype != x.dtype:
        return None
    return next((form for form in FORMS if torch.equal(form.compute(x, weight, epsilon), expected)), None)
