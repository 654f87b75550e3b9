"""From stored tensors to the modules that compute with them: one function a scheme, one line in ``BUILDERS``.

A tensor whose scheme has no builder, or whose module is no Linear (embeddings, fused experts), is decoded when it is
loaded and takes the memory of the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..schemes import Scheme
from ..schemes.int8 import Int8

_bnb: Any = bitsandbytes.nn  # not typed
Planes = dict[str, torch.Tensor]
Builder = Callable[[nn.Module, Planes, torch.device], nn.Module]


def _int8_linear(module: nn.Module, planes: Planes, device: torch.device) -> nn.Module:
    """``bnb.nn.Linear8bitLt`` in the place of ``module``, over the planes as they are.

    The parameter is built on its device before it is assigned: bitsandbytes leaves codes and scales behind when a
    finished layer moves. ``.to`` on int8 data sets ``CB`` and ``SCB`` and quantizes nothing.
    """
    out_features, in_features = planes["codes"].shape
    linear = _bnb.Linear8bitLt(
        in_features, out_features, bias=module.bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    weight = _bnb.Int8Params(planes["codes"], requires_grad=False, has_fp16_weights=False, SCB=planes["row_absmax"])
    linear.weight = weight.to(device)
    linear.source_cls = type(module)  # transformers wants it when it writes the model out again
    return linear


Linear8bitLt: type[nn.Module] = _bnb.Linear8bitLt
BUILDERS: dict[type[Scheme], Builder] = {Int8: _int8_linear}


def builder_for(module: nn.Module, leaf: str, scheme: Scheme) -> Builder | None:
    """What builds the module for a weight in ``scheme``; ``None`` if the weight is to be decoded instead."""
    if leaf != "weight" or not (type(module) is nn.Linear or isinstance(module, Conv1D)):
        return None
    return BUILDERS.get(type(scheme))
