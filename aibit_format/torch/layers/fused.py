"""Multiplies layers that read one input as one matrix: queries, keys and values; gate and up.

Their codes lie side by side in a file, so the matrix of all of them is a view of the same pages. transformers calls
such layers one after the other with the same tensor: the first call multiplies for all, the others find their part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import nn

from ...container.tables import Plane, TensorInfo
from ...file.reader import File
from ...schemes import capabilities

# Layers of one module that read the same input, in the order in which they are called, and in which files have them.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Int8Layer(Protocol):
    """Describes a layer over int8 rows that can be multiplied together with others."""

    out_features: int
    fused: FusedRows | None

    @property
    def text(self) -> str:
        """Return the scheme of the weight, as users write it."""
        ...

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias [out], if there is one."""
        ...

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes i8 [out, in] and their scales f32 [out], as they are now."""
        ...

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """Multiply x [rows, in] with codes [sum of sizes, in]: for each size, [rows, size] in the dtype of x."""
        ...


def fused_product(layer: Int8Layer, x: torch.Tensor) -> torch.Tensor:
    """Multiply x [..., in] with a layer: by itself, or as its part of a product that is made for several layers."""
    flat = x.reshape(-1, x.shape[-1])
    found = None if layer.fused is None else layer.fused.part(layer, x, flat)
    if found is None:
        (found,) = layer.products(flat, *layer.int8_rows(), layer.bias, [layer.out_features])
    return found.view(*x.shape[:-1], layer.out_features)


def split(product: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Split a product [rows, sum of sizes] into one tensor [rows, size] for each size."""
    return [product] if len(sizes) == 1 else [part.contiguous() for part in product.split(sizes, 1)]


class FusedRows:
    """Multiplies layers whose codes lie side by side. Parts that wait for their layer belong to one thread.

    Args:
        layers: two or more of one kind, in the order in which they are called.
        codes: i8 [rows of all, in], over the memory of the layers' codes.
    """

    def __init__(self, layers: Sequence[Int8Layer], codes: torch.Tensor) -> None:
        self.layers, self.codes = tuple(layers), codes
        self.sizes = [layer.out_features for layer in layers]
        rows = [layer.int8_rows() for layer in layers]
        self._addresses = [_addresses(*each) for each in rows]
        self._thread = threading.local()
        self._traced: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None
        self._apart = False

    def __reduce__(self) -> Any:
        """Leave ``None`` in copies: a copy of the layers has memory of its own, where nothing lies side by side."""
        return type(None), ()

    def part(self, layer: Int8Layer, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor | None:
        """Return the layer's [rows, out]; ``None`` where it has to multiply by itself.

        That is where x is not the tensor that the first layer was called with, or was written to since; where a layer
        has got another weight since it was loaded; and for good, once the others did not come for what was made for
        them, as in attention to another sequence.
        """
        if self._apart:
            return None
        waiting = self._thread.__dict__
        if layer is not self.layers[0]:
            if waiting.get("x") is not x or not waiting["state"].holds(x):
                return None
            found = waiting["parts"].pop(id(layer), None)
            if not waiting["parts"]:
                waiting.clear()
            return found
        self._apart = bool(waiting)
        waiting.clear()
        biases = self._biases(x.dtype)
        rows = [each.int8_rows() for each in self.layers]
        moved = [_addresses(*each) for each in rows] != self._addresses
        if self._apart or moved or biases is None:
            return None
        bias = torch.cat(biases) if biases else None
        scales = torch.cat([scales for _, scales in rows])  # joined each time, as somebody may have written to them
        first, *others = layer.products(flat, self.codes, scales, bias, self.sizes)
        parts = {id(each): found for each, found in zip(self.layers[1:], others, strict=True)}
        waiting.update(x=x, state=_State(x), parts=parts)
        return first

    def traced(self, layer: Int8Layer, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor | None:
        """Do as ``part`` while a compiler traces, which it does once and in one thread.

        The graph has one operator for all layers, which looks up where their weights lie each time it runs.
        """
        biases = None if self._apart else self._biases(x.dtype)
        if layer is self.layers[0] and biases is not None:
            from .custom_ops import linears  # registering operators takes time that only a compiler is worth

            codes, scales = zip(*[each.int8_rows() for each in self.layers], strict=True)
            added = torch.cat(biases) if biases else None
            found = linears(flat, list(codes), list(scales), layer.text, added)
            self._traced = x, found.split(self.sizes, 1)
        if self._traced is None or self._traced[0] is not x:
            return None
        (place,) = (i for i, each in enumerate(self.layers) if each is layer)
        found = self._traced[1][place]
        if layer is self.layers[-1]:
            self._traced = None
        return found

    def _biases(self, dtype: torch.dtype) -> list[torch.Tensor] | None:
        """Return the biases of all layers, or an empty list; ``None`` where only some have one."""
        biases = [layer.bias for layer in self.layers]
        present = [bias.to(dtype) for bias in biases if bias is not None]
        return present if len(present) in (0, len(biases)) else None


class _State:
    """Tells whether a tensor has been written to: by torch's count of writes, or by its values.

    torch does not count writes to tensors that were made in inference mode, so of these the values are kept. Copying
    and comparing them takes a hundredth of the product.
    """

    __slots__ = ("_values", "_version")

    def __init__(self, x: torch.Tensor) -> None:
        self._version = None if x.is_inference() else x._version
        self._values = x.clone() if x.is_inference() else None

    def holds(self, x: torch.Tensor) -> bool:
        """Return whether x is as it was. A NaN counts as changed."""
        return torch.equal(x, self._values) if self._values is not None else x._version == self._version


def _addresses(codes: torch.Tensor, scales: torch.Tensor) -> tuple[int, int]:
    return codes.data_ptr(), scales.data_ptr()


def fuse(model: nn.Module, file: File, view: Callable[[Plane], torch.Tensor | None]) -> None:
    """Fuse the layers of a model over ``file`` that can be.

    Args:
        view: gives a plane where the layers have their codes, in the mapped pages or an arena; None if it is not there.
    """
    for name, module in model.named_modules():
        for leaves in TOGETHER:
            layers: list[Any] = [module._modules.get(leaf) for leaf in leaves]
            weights = [f"{name}.{leaf}.weight" for leaf in leaves]
            if not all(hasattr(layer, "int8_rows") for layer in layers) or not all(each in file for each in weights):
                continue
            codes = _codes([file.info(each) for each in weights])
            whole = None if codes is None else view(codes)
            if whole is None:
                continue
            fused = FusedRows(layers, whole)
            for layer in layers:
                layer.fused = fused


def _codes(infos: Sequence[TensorInfo]) -> Plane | None:
    """Return one plane in the place of the tensors' codes, if their scheme can be multiplied together."""
    join = capabilities.find(infos[0].scheme, "join")
    return join(infos) if join and all(info.scheme == infos[0].scheme for info in infos) else None


def int8_codes(infos: Sequence[TensorInfo]) -> Plane | None:
    """Return one plane of codes i8 [rows of all, in] for matrices whose codes follow each other in a file.

    This is the capability ``join`` of int8 rows. ``None`` where they do not follow each other.
    """
    if any(len(info.shape) != 2 for info in infos):
        return None
    planes = [next(plane for plane in info.planes if plane.role == "codes") for info in infos]
    if any(a.offset + a.length != b.offset or a.shape[1] != b.shape[1] for a, b in pairwise(planes)):
        return None
    rows, length = sum(plane.shape[0] for plane in planes), sum(plane.length for plane in planes)
    return replace(planes[0], shape=(rows, planes[0].shape[1]), length=length)
