"""Computes 4-bit layers on a CPU without AVX512-BF16: compiled code decodes, and torch or compiled code multiplies.

bitsandbytes has a fast product for AVX512-BF16 alone. On other processors it decodes the whole weight at each call, and
that takes ten times as long as a token's product. Decoded here, a weight has the same values, bit for bit, so torch
gives the same product with it. With ``weight_only`` the values, which nothing rounds to the dtype of the inputs then,
are multiplied in float32, which these processors are faster at: of few rows while they are in registers, of more rows a
piece at a time that stays in cache. That is closer to the true product, and so not equal to what bitsandbytes gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from ... import native
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK
from .. import bnb_compat
from ..kernels.four_bit import Weight, nested_scales
from ..kernels.matmul import elsewhere, fast_dtype
from ..kernels.operators import NAMES


class MappedLinear4bit(bnb_compat.Linear4bit):
    """Replaces ``bnb.nn.Linear4bit`` over mapped planes, and mends three of its habits on a CPU.

    bitsandbytes 0.50 decodes wrongly where a block of the flat weight reaches over the end of a row of even length:
    such weights are decoded here. Where it has no fast product it decodes slowly: that is done here too, in eval mode
    and without gradients. And once it has rewritten a weight for AVX512-BF16, its ``state_dict`` is lossy: here it
    gives the planes of the file.
    """

    canonical: tuple[torch.Tensor, Any, Any]  # codes and QuantState as they were loaded, and the weight they belong to
    decode: Callable[[], torch.Tensor] | None = None  # of the whole weight, where bitsandbytes cannot
    weight_only: bool = False  # products in float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x [..., in_features]: [..., out_features], in the dtype of x."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.decode is not None:
            weight = self.decode().to(self.compute_dtype or x.dtype)
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            return linear(x.to(weight.dtype), weight, bias).to(x.dtype)
        weight = None if self.training or not x.numel() or elsewhere(x, self.bias) else _weight(self)
        if weight is None or self.compute_dtype not in NAMES:
            return super().forward(x)
        given, x = x, x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight_only and fast_dtype(x.dtype) == torch.float32:
            product = weight.times(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)
        else:
            product = linear(x, weight.values(x.dtype), bias)
        return product.to(given.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        codes, state, weight = self.canonical
        if self.weight is not weight:  # another one was put in its place, as merging an adapter does
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        destination[prefix + "weight"] = codes
        for key, value in state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{key}"] = value

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take over codes and scales of a state dict, which bitsandbytes writes but does not load."""
        start = f"{prefix}weight."
        stats = {key.removeprefix(start): each.detach() for key, each in state_dict.items() if key.startswith(start)}
        if not stats or self.decode is not None:
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        # One state for the weight, which the first forward may rewrite, and one for state dicts; the memory is theirs.
        states = [
            bnb_compat.QuantState.from_dict({key: each.clone() for key, each in stats.items()}, self.weight.device)
            for _ in range(2)
        ]
        rest = {key: each for key, each in state_dict.items() if not key.startswith(start)}
        if tuple(states[0].shape) == (self.out_features, self.in_features):
            codes = rest.pop(f"{prefix}weight").detach().to(self.weight.device, copy=True)
            self.weight = bnb_compat.loaded_weight(self, codes, states[0], states[0].nested)
            self.canonical = codes, states[1], self.weight
            rest[f"{prefix}weight"] = codes
        else:
            expected = [self.out_features, self.in_features]
            args[-1].append(f"{prefix}weight: shape {list(states[0].shape)}, the layer has {expected}")
        super()._load_from_state_dict(rest, prefix, *args)


def _weight(layer: Any) -> Weight | None:
    """Return a layer's weight as it is now; None where bitsandbytes is faster, or has to decode it."""
    state, codes = getattr(layer.weight, "quant_state", None), layer.weight.data
    if not native.available or state is None or bnb_compat.rewrites(layer):
        return None
    rows, columns = layer.out_features, layer.in_features
    if bnb_compat.is_rewritten(state) or tuple(state.shape) != (rows, columns):
        return None
    if columns % state.blocksize or codes.dtype != torch.uint8 or codes.device.type != "cpu":
        return None
    packed = codes.numpy().reshape(rows, columns // 2)
    scales = _scales(state).reshape(rows, columns // state.blocksize)
    return Weight(packed, scales, CODEBOOKS[state.quant_type].values, state.blocksize)


def _scales(state: Any) -> np.ndarray:
    """Return the scales of a ``QuantState``, f32."""
    if not state.nested:
        return state.absmax.numpy()
    if state.state2.blocksize != NESTED_BLOCK:
        raise NotImplementedError(f"nested scales in blocks of {state.state2.blocksize}")
    outer = state.state2
    return nested_scales(state.absmax.numpy(), outer.code.numpy(), outer.absmax.numpy(), float(state.offset))
