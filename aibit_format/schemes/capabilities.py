"""Registers functions that exist for a scheme beside its numpy code: fast encoders, torch decoders, modules, exports.

A scheme is complete without any entry here. Its numpy code is the reference: a registered function gives the same
values, bit for bit unless ``CAPABILITIES`` says otherwise. Functions are registered as ``"module:function"`` and
imported on first use, so that reading a file imports none of them.

Other packages register theirs under the entry point group ``aibit_format.capabilities``, by the names of the scheme and
the capability joined by a dot: ``"ternary.decode_torch" = "my_package.torch:decode"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

from .base import Scheme
from .cluster import Cluster
from .cluster_group import ClusterGroup
from .fourbit import FourBit
from .fp8 import Fp8E4M3
from .fp8_block import Fp8Block
from .ggml import GGML
from .ggml_ordered import GGMLOrdered
from .int4_group import Int4Group
from .int8 import Int8
from .int8_affine import Int8Absmax, Int8ZeroPoint
from .int8_outlier import Int8Outlier, Int8Outlier1
from .int_group import IntGroup
from .microscaling import MXFP4, MXFP8, NVFP4
from .nf4_cpu import NF4CPU
from .plain import Plain
from .ternary import Ternary
from .w8a8 import Int8Dynamic, Int8Static

# Capability -> signature of the function.
CAPABILITIES: dict[str, str] = {
    # Returns the same planes as ``scheme.encode``, in the fastest way available.
    "encode_fast": "(scheme, array, dtype) -> planes",
    # Returns the same planes as ``scheme.encode_weighted``; only for schemes that take importance.
    "encode_weighted_fast": "(scheme, array, dtype, importance) -> planes",
    # Returns what GPTQ needs for rows of so many columns; None if the scheme's parameters have none.
    "quantizer": "(scheme, columns) -> schemes.quantizer.Quantizer | None",
    # Returns ``convert.error.sums`` for planes that encode ``array``: noise, signal and the largest error.
    "errors_fast": "(scheme, planes, array, dtype, rows) -> (float, float, float)",
    # Does the same as ``scheme.decode_rows`` with tensors, on the device of the planes.
    "decode_torch": "(scheme, planes, shape, rows) -> f32 tensor",
    # Returns a ``kernels.matmul.Product``, which multiplies inputs with planes as they are; None if the scheme's
    # parameters have none. Its sums are rounded in its own way, so results are close to the reference's but not equal.
    "product": "(scheme) -> Product | None",
    # Multiplies x [rows, in] with a ``kernels.functional.Weight``, where the scheme says to what x is rounded first.
    "linear": "(x, weight, bias) -> tensor",
    # Returns a library's layer over the planes, which replaces a Linear; see ``torch.load.modules``.
    "build_module": "(module, info, planes, target) -> module",
    # Returns some rows of a stored tensor as a smaller tensor, maybe in a simpler scheme; see ``file.slice_rows``.
    "slice_rows": "(file, info, rows) -> (scheme, planes)",
    # Returns the planes of some rows, different int64 indices, maybe in a simpler scheme; see ``schemes.take_rows``.
    "take_rows": "(scheme, planes, shape, dtype, rows) -> (scheme, planes)",
    # Returns the codes of tensors that follow one another in a file as one plane; see ``torch.layers.fused``.
    "join": "(infos) -> Plane | None",
    # Returns the entries of a tensor in a checkpoint that bitsandbytes loads; see its export in ``formats``.
    "export_bnb": "(file, info) -> Layer",
}

_W8A8 = (Int8Dynamic, Int8Static)
_BLOCK_SCALED = (Fp8Block, IntGroup, MXFP4, MXFP8, NVFP4, Ternary)
_SEARCHED = (ClusterGroup, Fp8E4M3, Fp8Block, Int4Group, IntGroup, MXFP4, MXFP8, NVFP4)
_registered: dict[tuple[type[Scheme], str], str] = {}


def register(scheme: type[Scheme], capability: str, target: str) -> None:
    """Register the function ``target``, ``"module:function"``, for a capability of a scheme's class.

    Raises:
        ValueError: there is no such capability, or ``target`` does not have this form.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"unknown capability {capability!r}; known: {', '.join(CAPABILITIES)}")
    if target.count(":") != 1:
        raise ValueError(f"{target!r}: expected 'module:function'")
    _registered[scheme, capability] = target


def find(scheme: Scheme, capability: str) -> Callable[..., Any] | None:
    """Return the function for a capability of a scheme, or ``None`` if there is none."""
    target = _registered.get((type(scheme), capability)) or _outside().get(f"{scheme.name}.{capability}")
    return _function(target) if target else None


def has(scheme: Scheme, capability: str) -> bool:
    """Tell whether a function is registered, without importing it."""
    return (type(scheme), capability) in _registered or f"{scheme.name}.{capability}" in _outside()


def registered() -> Iterator[tuple[type[Scheme], str, str]]:
    """Yield class, capability and target of every function registered by ``register``."""
    for (scheme, capability), target in _registered.items():
        yield scheme, capability, target


@cache
def _function(target: str) -> Callable[..., Any]:
    # Targets come from this file or from installed packages, never from a file that is read.
    module, attribute = target.split(":")
    return vars(import_module(module))[attribute]


@cache
def _outside() -> dict[str, str]:
    from importlib.metadata import entry_points  # slow to import

    return {entry.name: entry.value for entry in entry_points(group="aibit_format.capabilities")}


def _register_all(capability: str, module: str, functions: dict[type[Scheme], str]) -> None:
    for scheme, function in functions.items():
        register(scheme, capability, f"aibit_format.{module}:{function}")


_register_all("encode_fast", "convert.encoders", {
    Plain: "plain", Int8: "int8", FourBit: "four_bit", NF4CPU: "nf4_cpu", GGML: "ggml",
    **dict.fromkeys(_SEARCHED, "searched"),
})  # fmt: skip
_register_all("encode_weighted_fast", "convert.encoders", {
    GGML: "ggml_weighted", **dict.fromkeys((FourBit, *_SEARCHED), "searched_weighted"),
})  # fmt: skip
_register_all(
    "quantizer", "schemes.group_quantizer", {Int4Group: "int4_group_quantizer", IntGroup: "int_group_quantizer"}
)
_register_all("quantizer", "convert.encoders", {GGML: "ggml_quantizer"})
_register_all("errors_fast", "convert.error", {Plain: "plain_sums", Int8: "int8_sums", FourBit: "four_bit_sums"})
_register_all("decode_torch", "torch.kernels.decode", {
    Int8: "int8", Int8Absmax: "grouped", Int8ZeroPoint: "grouped", Fp8E4M3: "grouped", Int4Group: "int4_group",
    **dict.fromkeys((Int8Outlier, Int8Outlier1), "int8_outlier"), **dict.fromkeys(_BLOCK_SCALED, "block_scaled"),
    Cluster: "cluster", ClusterGroup: "cluster_group", FourBit: "four_bit", NF4CPU: "nf4_cpu", GGML: "ggml",
    GGMLOrdered: "ggml_ordered", **dict.fromkeys(_W8A8, "w8a8"),
})  # fmt: skip
_register_all("product", "torch.kernels.matmul", {
    Int8: "int8_product", Int8Absmax: "int8_absmax_product", **dict.fromkeys(_W8A8, "w8a8_product"),
})  # fmt: skip
_register_all("linear", "torch.kernels.w8a8", dict.fromkeys(_W8A8, "linear"))
_register_all("product", "torch.kernels.packed", dict.fromkeys(
    (*_BLOCK_SCALED, Int8ZeroPoint, Fp8E4M3, Int4Group, GGML, Cluster, ClusterGroup), "product"
))  # fmt: skip
_register_all("build_module", "torch.load.modules", {
    Int8: "int8_linear", FourBit: "four_bit_linear", NF4CPU: "nf4_cpu_linear",
})  # fmt: skip
_ROWS = {
    **dict.fromkeys((Plain, Int8, Int8Absmax, Int8ZeroPoint, Fp8E4M3, Int4Group, GGML), "by_rows"),
    **dict.fromkeys((Cluster, ClusterGroup, GGMLOrdered, *_BLOCK_SCALED, *_W8A8), "by_rows"),
    FourBit: "four_bit", NF4CPU: "nf4_cpu", **dict.fromkeys((Int8Outlier, Int8Outlier1), "int8_outlier"),
}  # fmt: skip
_register_all("slice_rows", "file.slice_rows", _ROWS)
_register_all("take_rows", "schemes.take_rows", _ROWS)
_register_all("join", "torch.layers.fused", dict.fromkeys((Int8, Int8Dynamic), "int8_codes"))
_register_all("export_bnb", "formats.huggingface.bitsandbytes_export", {
    Int8: "int8_layer", FourBit: "four_bit_layer", NF4CPU: "nf4_cpu_layer",
})  # fmt: skip
