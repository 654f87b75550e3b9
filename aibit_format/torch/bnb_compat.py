"""Leans on the insides of bitsandbytes, here and nowhere else.

Each name below is private to bitsandbytes, or its behaviour is documented nowhere. It says why it is needed. `CHECKED`
are the versions that all of them were checked against; ``pyproject.toml`` bounds what is installed. A name that is not
as expected raises `IncompatibleLibraryError`; there is no silent other way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional

from ..errors import IncompatibleLibraryError
from ..interop import torch_dtypes
from ..schemes.fourbit import CODEBOOKS, NESTED_BLOCK, FourBit, dynamic_map

Planes = Mapping[str, torch.Tensor]

CHECKED = ("0.50",)  # first two numbers of the version

# Magnitude from which LLM.int8 takes a column of inputs out of 8 bits: bitsandbytes' and transformers' default.
THRESHOLD = 6.0


def need(holder: Any, attribute: str, reason: str) -> Any:
    """Return an attribute of bitsandbytes.

    Raises:
        IncompatibleLibraryError: the installed version has no such attribute.
    """
    found = getattr(holder, attribute, None)
    if found is None:
        name = f"{getattr(holder, '__name__', type(holder).__name__)}.{attribute}"
        raise IncompatibleLibraryError("bitsandbytes", bitsandbytes.__version__, name, reason, CHECKED)
    return found


_nn = bitsandbytes.nn
Linear8bitLt: Any = need(_nn, "Linear8bitLt", "the layer over int8 rows")
Linear4bit: Any = need(_nn, "Linear4bit", "the layer over 4-bit blocks")
Int8Params: Any = need(_nn, "Int8Params", "the parameter that takes codes and scales as they are")
Params4bit: Any = need(_nn, "Params4bit", "the parameter that takes packed codes as they are")
QuantState: Any = need(functional, "QuantState", "the scales and codebook beside 4-bit codes")
has_avx512bf16: Any = need(functional, "has_avx512bf16", "whether its CPU library multiplies bf16")


def int8_parameter(codes: torch.Tensor, row_absmax: torch.Tensor, device: torch.device) -> Any:
    """Return an ``Int8Params`` over the planes as they are.

    The parameter is built on its device before it is assigned: bitsandbytes leaves codes and scales behind when a
    finished layer moves. ``.to`` on int8 data sets ``CB`` and ``SCB`` and quantizes nothing.
    """
    made = Int8Params(codes, requires_grad=False, has_fp16_weights=False, SCB=row_absmax).to(device)
    need(made, "CB", "the codes that a forward multiplies; without them it quantizes the codes once more")
    need(made, "SCB", "the scales of the rows")
    return made


def int8_state(layer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return codes and scales of a ``Linear8bitLt``, as its next forward would use them; ``None`` if it has none.

    Its first forward moves them from the parameter to ``state``, which this does too.
    """
    if layer.weight.CB is not None:
        need(layer, "init_8bit_state", "what moves codes and scales from the parameter to the layer's state")()
    state = need(layer, "state", "where a layer keeps its codes and scales")
    return None if state.CB is None or state.SCB is None else (state.CB, state.SCB)


def int8_state_to_parameter(layer: Any) -> None:
    """Move codes and scales of a ``Linear8bitLt`` back to its parameter, the only place where a state dict is loaded.

    bitsandbytes itself refuses to load one after the first forward.
    """
    state = layer.state
    if layer.weight.CB is None and state.CB is not None:
        layer.weight.CB, layer.weight.SCB = state.CB, state.SCB
        state.CB = state.SCB = None


def quant_state(scheme: FourBit, shape: tuple[int, ...], dtype: str, planes: Planes) -> Any:
    """Make the ``QuantState`` that bitsandbytes keeps beside the codes."""
    device = planes["codes"].device
    state = QuantState(
        absmax=planes["absmax"], shape=torch.Size(shape), blocksize=scheme.block_size, quant_type=scheme.name,
        code=_book(CODEBOOKS[scheme.name].values).to(device), dtype=torch_dtypes()[dtype],
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
    """Copy a codebook for a layer: bitsandbytes may write to it, and the scheme's own is shared."""
    return torch.from_numpy(values.copy())


def loaded_weight(layer: Any, codes: torch.Tensor, state: Any, nested: bool) -> Any:
    """Return the parameter of a ``Linear4bit`` over codes and the state that belongs to them, and give it the state."""
    layer.quant_state = state
    return Params4bit(
        codes, requires_grad=False, quant_state=state, blocksize=state.blocksize, compress_statistics=nested,
        quant_type=state.quant_type, bnb_quantized=True, module=layer,
    )  # fmt: skip


def tiled_state(scheme: FourBit, shape: tuple[int, ...], dtype: str, planes: Planes) -> Any:
    """Make the state that bitsandbytes would have after rewriting the weight at its first forward."""
    state: Any = QuantState(
        absmax=planes["tile_absmax"], shape=torch.Size(shape), blocksize=scheme.block_size,
        quant_type=scheme.name, code=_book(CODEBOOKS[scheme.name].values), dtype=torch.bfloat16,
    )  # fmt: skip
    state.packing_format_for_cpu = True
    state.original_dtype = torch_dtypes()[dtype]
    state.original_nested = bool(scheme.nested)
    state.original_qshape = (planes["codes"].numel(), 1)
    return state


def let_rewrite(layer: Any, rewrite: bool) -> None:
    """Tell a ``Linear4bit`` whether its first forward on a CPU may rewrite the weight for AVX512-BF16."""
    if getattr(layer, "support_avx512bf16_for_cpu", None) is None:
        need(layer, "support_avx512bf16_for_cpu", "the flag that keeps a forward from rewriting a mapped weight")
    layer.support_avx512bf16_for_cpu = rewrite


def rewrites(layer: Any) -> bool:
    """Return whether a ``Linear4bit`` multiplies a weight that is rewritten for AVX512-BF16."""
    return layer.support_avx512bf16_for_cpu


def is_rewritten(state: Any) -> bool:
    """Return whether a ``QuantState`` is that of a rewritten weight."""
    return getattr(state, "packing_format_for_cpu", False)  # set by the rewriting alone


def tiles_are_readable() -> bool:
    """Return whether the installed version reads the tiles of nf4-cpu, whose layout is private to a version.

    Where it does not, the caller maps the canonical planes instead, which bitsandbytes rewrites at the first forward:
    slow, and a copy in memory. A warning says so.
    """
    if _version() in CHECKED:
        return True
    warnings.warn(
        f"bitsandbytes {bitsandbytes.__version__} was not checked with the tiles of nf4-cpu (those of "
        f"{', '.join(CHECKED)} are read): weights are rewritten at the first forward instead; install "
        f"bitsandbytes=={CHECKED[-1]}.*, or convert to nf4",
        stacklevel=2,
    )
    return False


@cache
def _version() -> str:
    return ".".join(bitsandbytes.__version__.split(".")[:2])
