"""From stored tensors to the modules that compute with them: one function a scheme, one line in ``BUILDERS``.

Linear weights (and GPT-2's Conv1D) in bitsandbytes' schemes become its modules, in any other quantized scheme
``QuantizedLinear``; embeddings ``QuantizedEmbedding``. What else is quantized (fused experts, other modules) is decoded
when it is loaded and takes the memory of the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.functional import QuantState, has_avx512bf16
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...container.tables import Plane, TensorInfo
from ...interop import torch_dtypes
from ...schemes import Scheme
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK, FourBit, dynamic_map
from ...schemes.int8 import Int8
from ...schemes.nf4_cpu import COLUMNS, NF4CPU, ROWS
from ...schemes.plain import Plain
from ..kernels.decode import DECODERS
from ..layers.dequantized import Quantized, QuantizedEmbedding, QuantizedLinear
from ..layers.linear4bit import MappedLinear4bit
from ..layers.linear8bit import Linear8bitLt

_bnb: Any = bitsandbytes.nn  # not typed
Planes = dict[str, torch.Tensor]

# Magnitude from which LLM.int8 takes a column of inputs out of 8 bits: bitsandbytes' and transformers' default.
THRESHOLD = 6.0


@dataclass(frozen=True)
class Target:
    """Where modules are built, and what bitsandbytes' layers compute with where the file says it."""

    device: torch.device
    compute_dtype: torch.dtype | None = None  # of 4-bit layers; None: the logical dtype
    threshold: float = THRESHOLD
    weight_only: bool = False  # products as a processor is fast at them, and not bitsandbytes': see ``load_model``


Builder = Callable[[nn.Module, TensorInfo, Planes, Target], nn.Module]

Linear4bit: type[nn.Module] = _bnb.Linear4bit

# The version whose kernels read the tiles of nf4-cpu; for others they are left alone, and nf4 is read instead.
TILES_VERSION = "0.50"


def _int8_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """A ``bnb.nn.Linear8bitLt`` in the place of ``module``, over the planes as they are.

    The parameter is built on its device before it is assigned: bitsandbytes leaves codes and scales behind when a
    finished layer moves. ``.to`` on int8 data sets ``CB`` and ``SCB`` and quantizes nothing.
    """
    out_features, in_features = info.shape
    linear = Linear8bitLt(
        in_features, out_features, bias=_bias(module) is not None, has_fp16_weights=False,
        threshold=target.threshold, device="meta",
    )  # fmt: skip
    weight = _bnb.Int8Params(planes["codes"], requires_grad=False, has_fp16_weights=False, SCB=planes["row_absmax"])
    linear.weight = weight.to(target.device)
    return linear


def _four_bit_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """``bnb.nn.Linear4bit`` in the place of ``module``, its ``Params4bit`` over the planes as they are.

    On a CPU with AVX512-BF16 bitsandbytes rewrites the weight at the first forward, where its shape allows that; where
    it does not, the layer is told to compute without.
    """
    scheme = info.scheme
    tiled = isinstance(scheme, NF4CPU)
    scheme = scheme.canonical if isinstance(scheme, NF4CPU) else scheme
    if not isinstance(scheme, FourBit):
        raise TypeError(f"{scheme.text} is not of four bits")
    out_features, in_features = info.shape
    compute_dtype = target.compute_dtype or torch_dtypes()[info.dtype]
    linear = MappedLinear4bit(
        in_features, out_features, bias=_bias(module) is not None, compute_dtype=compute_dtype,
        compress_statistics=bool(scheme.nested), quant_type=scheme.name, device="meta",
    )  # fmt: skip
    codes, state = planes["codes"].view(-1, 1), _quant_state(scheme, info, planes)
    linear.canonical, linear.weight_only = (codes, state), target.weight_only
    fits = not (out_features % ROWS or in_features % COLUMNS or in_features % scheme.block_size)
    on_cpu = target.device.type == "cpu"
    fast = on_cpu and fits and has_avx512bf16()
    linear.support_avx512bf16_for_cpu = fast
    if fast and tiled and bitsandbytes.__version__.startswith(TILES_VERSION):
        codes, state = planes["tiles"], _tiled_state(scheme, info, planes)
    elif fast:
        # The rewriting changes the state it is given, so it gets one of its own.
        state = _quant_state(scheme, info, planes)
    if on_cpu and in_features % scheme.block_size and in_features % 2 == 0:
        stored = Quantized(scheme, planes, (out_features, in_features), info.dtype)
        linear.decode = partial(stored.rows, slice(0, out_features), torch.float32)
    linear.weight = _bnb.Params4bit(
        codes, requires_grad=False, quant_state=state, blocksize=scheme.block_size,
        compress_statistics=bool(scheme.nested), quant_type=scheme.name, bnb_quantized=True, module=linear,
    )  # fmt: skip
    linear.quant_state = state
    return linear


def _quant_state(scheme: FourBit, info: TensorInfo, planes: Planes) -> QuantState:
    """What bitsandbytes keeps beside the codes."""
    device = planes["codes"].device
    state = QuantState(
        absmax=planes["absmax"], shape=torch.Size(info.shape), blocksize=scheme.block_size, quant_type=scheme.name,
        code=_book(CODEBOOKS[scheme.name].values).to(device), dtype=torch_dtypes()[info.dtype],
    )  # fmt: skip
    if scheme.nested:
        state.nested = True
        state.offset = planes["nested_offset"][0]
        state.state2 = QuantState(
            absmax=planes["nested_absmax"], blocksize=NESTED_BLOCK, code=_book(dynamic_map()).to(device),
            dtype=torch.float32,
        )  # fmt: skip
    return state


def _book(values: np.ndarray) -> torch.Tensor:
    """A codebook of a layer's own: bitsandbytes may write to it, the scheme's is everybody's."""
    return torch.from_numpy(values.copy())


def _tiled_state(scheme: FourBit, info: TensorInfo, planes: Planes) -> QuantState:
    """The state that bitsandbytes would have after rewriting the weight at its first forward."""
    state: Any = QuantState(
        absmax=planes["tile_absmax"], shape=torch.Size(info.shape), blocksize=scheme.block_size,
        quant_type=scheme.name, code=_book(CODEBOOKS[scheme.name].values), dtype=torch.bfloat16,
    )  # fmt: skip
    state.packing_format_for_cpu = True
    state.original_dtype = torch_dtypes()[info.dtype]
    state.original_nested = bool(scheme.nested)
    state.original_qshape = (planes["codes"].numel(), 1)
    return state


def _any_linear(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """``QuantizedLinear`` in the place of ``module``."""
    rows, columns = info.shape
    return QuantizedLinear(info.scheme, planes, (rows, columns), info.dtype, _bias(module))


def _any_embedding(module: nn.Module, info: TensorInfo, planes: Planes, target: Target) -> nn.Module:
    """``QuantizedEmbedding`` in the place of ``module``."""
    rows, columns = info.shape
    padding: Any = module.padding_idx
    return QuantizedEmbedding(info.scheme, planes, (rows, columns), info.dtype, padding)


def _bias(module: nn.Module) -> Any:
    return module._parameters.get("bias")


BUILDERS: dict[type[Scheme], Builder] = {
    Int8: _int8_linear,
    FourBit: _four_bit_linear,
    NF4CPU: _four_bit_linear,
}


def builder_for(module: nn.Module, leaf: str, info: TensorInfo, target: Target) -> Builder | None:
    """What builds the module for a weight; ``None`` if the weight is to be decoded, or is not quantized.

    Off the CPU, what only numpy can decode is decoded once.
    """
    kind = type(info.scheme)
    if leaf != "weight" or isinstance(info.scheme, Plain) or len(info.shape) != 2:
        return None
    if target.device.type != "cpu" and kind not in BUILDERS and kind not in DECODERS:
        return None
    if target.weight_only and kind is Int8 and type(module) is nn.Linear:
        return _any_linear
    if isinstance(module, Conv1D) == info.transposed and (type(module) is nn.Linear or isinstance(module, Conv1D)):
        return BUILDERS.get(kind, _any_linear)
    return _any_embedding if type(module) is nn.Embedding and not info.transposed else None


def planes_for(info: TensorInfo, target: Target) -> tuple[Plane, ...]:
    """The planes of a tensor that can be of use on the device: the tiles of nf4-cpu are a CPU's alone."""
    if target.device.type == "cpu" or not isinstance(info.scheme, NF4CPU):
        return info.planes
    kept = {spec.role for spec in info.scheme.canonical.planes(info.shape, info.dtype)}
    return tuple(plane for plane in info.planes if plane.role in kept)
