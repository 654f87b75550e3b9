"""Builds the modules that compute with stored tensors.

Linear weights (and GPT-2's Conv1D) become what the capability ``build_module`` of their scheme makes, which for
bitsandbytes' own are its layers; those in any other quantized scheme become ``QuantizedLinear``, embeddings
``QuantizedEmbedding``, and fused experts ``QuantizedExperts``. Where the scheme says to what inputs are rounded, a
``W8A8Linear`` does that, unless ``weight_only`` is wanted. What else is quantized is decoded when it is loaded and
takes the memory of the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ...container.tables import Plane, TensorInfo
from ...hf.compat import holds_experts, is_conv1d
from ...hf.layers import is_linear, looks_up, multiplies
from ...interop import torch_dtypes
from ...schemes import capabilities
from ...schemes.fourbit import FourBit
from ...schemes.nf4_cpu import COLUMNS, NF4CPU, ROWS
from ...schemes.plain import Plain
from ..bnb_compat import (
    THRESHOLD,
    has_avx512bf16,
    int8_parameter,
    let_rewrite,
    loaded_weight,
    quant_state,
    tiled_state,
    tiles_are_readable,
)
from ..layers.dequantized import Quantized, QuantizedEmbedding, QuantizedLinear
from ..layers.experts import QuantizedExperts
from ..layers.linear4bit import MappedLinear4bit
from ..layers.linear8bit import Linear8bitLt
from ..layers.w8a8 import W8A8Linear

Planes = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """Says where modules are built, and what bitsandbytes' layers compute with where the file says it."""

    device: torch.device
    compute_dtype: torch.dtype | None = None  # of 4-bit layers; None: the logical dtype
    threshold: float = THRESHOLD
    weight_only: bool = False  # products as a processor is fast at them, and not bitsandbytes': see ``load_model``


Builder = Callable[[nn.Module, TensorInfo, Planes, Target], nn.Module]


def int8_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build a ``bnb.nn.Linear8bitLt`` in the place of ``module``, over the planes as they are."""
    out_features, in_features = info.shape
    linear = Linear8bitLt(
        in_features, out_features, bias=_bias(module) is not None, has_fp16_weights=False,
        threshold=target.threshold, device="meta",
    )  # fmt: skip
    linear.weight = int8_parameter(planes["codes"], planes["row_absmax"], target.device)
    return linear


def four_bit_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build a ``bnb.nn.Linear4bit`` in the place of ``module``, its ``Params4bit`` over the planes as they are."""
    return _linear4bit(module, info, cast(FourBit, info.scheme), planes, target)


def nf4_cpu_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build the same over the tiles, on a CPU that bitsandbytes would rewrite the weight for."""
    return _linear4bit(module, info, cast(NF4CPU, info.scheme).canonical, planes, target)


def _linear4bit(module: nn.Module, info: TensorInfo, scheme: FourBit, planes: Planes, target: Target) -> nn.Module:
    """Build a 4-bit layer.

    On a CPU with AVX512-BF16 bitsandbytes rewrites the weight at the first forward, where its shape allows that; where
    it does not, the layer is told to compute without.
    """
    out_features, in_features = info.shape
    compute_dtype = target.compute_dtype or torch_dtypes()[info.dtype]
    linear = MappedLinear4bit(
        in_features, out_features, bias=_bias(module) is not None, compute_dtype=compute_dtype,
        compress_statistics=bool(scheme.nested), quant_type=scheme.name, device="meta",
    )  # fmt: skip
    codes, state = planes["codes"].view(-1, 1), quant_state(scheme, info.shape, info.dtype, planes)
    canonical, linear.weight_only = (codes, state), target.weight_only
    fits = not (out_features % ROWS or in_features % COLUMNS or in_features % scheme.block_size)
    on_cpu = target.device.type == "cpu"
    fast = on_cpu and fits and has_avx512bf16()
    let_rewrite(linear, fast)
    if fast and "tiles" in planes and tiles_are_readable():
        codes, state = planes["tiles"], tiled_state(scheme, info.shape, info.dtype, planes)
    elif fast:
        # The rewriting changes the state it is given, so it gets one of its own.
        state = quant_state(scheme, info.shape, info.dtype, planes)
    if on_cpu and in_features % scheme.block_size and in_features % 2 == 0:
        stored = Quantized(scheme, planes, (out_features, in_features), info.dtype)
        linear.decode = partial(stored.rows, slice(0, out_features), torch.float32)
    linear.weight = loaded_weight(linear, codes, state, bool(scheme.nested))
    linear.canonical = (*canonical, linear.weight)
    return linear


def _dequantized_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build a ``QuantizedLinear`` in the place of ``module``, or a ``W8A8Linear``, which is one."""
    rows, columns = info.shape
    family = W8A8Linear if _multiplication(info, target) else QuantizedLinear
    return family(info.scheme, planes, (rows, columns), info.dtype, _bias(module))


def _dequantized_embedding(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build a ``QuantizedEmbedding`` in the place of ``module``."""
    rows, columns = info.shape
    padding: Any = module.padding_idx
    scale: Any = getattr(module, "embed_scale", None)
    return QuantizedEmbedding(info.scheme, planes, (rows, columns), info.dtype, padding, scale)


def _experts(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """Build ``QuantizedExperts`` in the place of a parameter of ``module``."""
    multiply = _multiplication(info, target)
    return QuantizedExperts(info.scheme, planes, info.shape, info.dtype, info.transposed, multiply)


def _multiplication(info: TensorInfo, target: Target) -> Any:
    """Return how inputs are multiplied with a weight whose scheme says to what they are rounded; None for others."""
    return None if target.weight_only else capabilities.find(info.scheme, "linear")


def _bias(module: nn.Module) -> Any:
    return module._parameters.get("bias")


def builder_for(module: nn.Module, leaf: str, info: TensorInfo, target: Target) -> Builder | None:
    """Return the builder of the module for a weight; ``None`` if the weight is to be decoded, or is not quantized.

    Off the CPU, weights that only numpy can decode, in a scheme of another package, are decoded once.
    """
    scheme = info.scheme
    if isinstance(scheme, Plain):
        return None
    decodes = target.device.type == "cpu" or capabilities.has(scheme, "decode_torch")
    if len(info.shape) == 3 and holds_experts(module):
        return _experts if decodes else None
    build = capabilities.find(scheme, "build_module")
    if leaf != "weight" or len(info.shape) != 2 or not (decodes or build):
        return None
    if target.weight_only and capabilities.has(scheme, "product") and type(module) is nn.Linear:
        return _dequantized_linear
    if is_linear(module) and is_conv1d(module) == info.transposed:
        return build or _dequantized_linear
    if multiplies(module) and not info.transposed:
        return _dequantized_linear  # transformers makes no layer of bitsandbytes of it, and could not load one
    return _dequantized_embedding if looks_up(module) and not info.transposed else None


def planes_for(info: TensorInfo, target: Target) -> tuple[Plane, ...]:
    """Return the planes of a tensor that can be of use on the device."""
    on_cpu = target.device.type == "cpu"
    return tuple(plane for plane in info.planes if on_cpu or plane.role not in info.scheme.cpu_roles)
