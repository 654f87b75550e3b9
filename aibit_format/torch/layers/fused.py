"""Layers that read one input, multiplied as one matrix: queries, keys and values; gate and up.

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

from ...container.tables import Plane
from ...file.reader import File
from ...schemes.int8 import Int8

# Layers of one module that read the same input, in the order in which they are called, and in which files have them.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Int8Layer(Protocol):
    """What a layer over int8 rows can do, to be joined with others."""

    out_features: int
    joined: Joined | None

    @property
    def bias(self) -> torch.Tensor | None: ...

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes i8 [out, in] and their scales f32 [out], as they are now."""
        ...

    def products(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]
    ) -> list[torch.Tensor]:
        """x [rows, in] times codes [sum of sizes, in]: for each size a tensor [rows, size] in the dtype of x."""
        ...


def product(layer: Int8Layer, x: torch.Tensor) -> torch.Tensor:
    """x [..., in] -> [..., out]: the layer's own product, or its part of one that is made for several layers."""
    flat = x.reshape(-1, x.shape[-1])
    found = None if layer.joined is None else layer.joined.part(layer, x, flat)
    if found is None:
        (found,) = layer.products(flat, *layer.int8_rows(), layer.bias, [layer.out_features])
    return found.view(*x.shape[:-1], layer.out_features)


def parts(product: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """[rows, size] of each size, of a product [rows, sum of sizes]."""
    return [product] if len(sizes) == 1 else [part.contiguous() for part in product.split(sizes, 1)]


class Joined:
    """Layers over codes that lie side by side. Each thread has its own parts that wait.

    Args:
        layers: two or more of one kind, in the order in which they are called.
        codes: i8 [rows of all, in], over the memory of the layers' codes.
    """

    def __init__(self, layers: Sequence[Int8Layer], codes: torch.Tensor) -> None:
        self.layers, self.codes = tuple(layers), codes
        self.sizes = [layer.out_features for layer in layers]
        rows = [layer.int8_rows() for layer in layers]
        self.scales = torch.cat([scales for _, scales in rows])
        self._places = [_places(*each) for each in rows]
        self._thread = threading.local()
        self._traced: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None
        self._apart = False

    def __reduce__(self) -> Any:
        """A copy of the layers has memory of its own, where nothing lies side by side: it is not joined."""
        return type(None), ()

    def part(self, layer: Int8Layer, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor | None:
        """The layer's [rows, out]; None where it has to multiply for itself.

        That is where x is not the tensor that the first layer was called with, or was written to since (which torch
        does not tell of tensors made in inference mode); where a layer has got another weight since it was loaded;
        and for good, once the others did not come for what was made for them, as in attention to another sequence.
        """
        if self._apart:
            return None
        waiting = self._thread.__dict__
        if layer is not self.layers[0]:
            if waiting.get("of") != _version(x) or waiting.get("x") is not x:
                return None
            found = waiting["parts"].pop(id(layer), None)
            if not waiting["parts"]:
                waiting.clear()
            return found
        self._apart = bool(waiting)
        waiting.clear()
        biases = self._biases(x.dtype)
        moved = [_places(*each.int8_rows()) for each in self.layers] != self._places
        if self._apart or moved or biases is None:
            return None
        bias = torch.cat(biases) if biases else None
        first, *others = layer.products(flat, self.codes, self.scales, bias, self.sizes)
        parts = {id(each): found for each, found in zip(self.layers[1:], others, strict=True)}
        waiting.update(x=x, of=_version(x), parts=parts)
        return first

    def traced(self, layer: Int8Layer, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor | None:
        """As ``part``, while a compiler writes down what is done, which it does once and in one thread.

        The graph has one operator for all layers. Where their weights lie it looks up each time it runs.
        """
        biases = None if self._apart else self._biases(x.dtype)
        if layer is self.layers[0] and biases is not None:
            from .custom_ops import linears  # wanted by a compiler alone

            codes, scales = zip(*[each.int8_rows() for each in self.layers], strict=True)
            found = linears(flat, list(codes), list(scales), torch.cat(biases) if biases else None)
            self._traced = x, found.split(self.sizes, 1)
        if self._traced is None or self._traced[0] is not x:
            return None
        (place,) = (i for i, each in enumerate(self.layers) if each is layer)
        found = self._traced[1][place]
        if layer is self.layers[-1]:
            self._traced = None
        return found

    def _biases(self, dtype: torch.dtype) -> list[torch.Tensor] | None:
        """Of all layers, or none; ``None`` where only some have one."""
        biases = [layer.bias for layer in self.layers]
        present = [bias.to(dtype) for bias in biases if bias is not None]
        return present if len(present) in (0, len(biases)) else None


def _places(codes: torch.Tensor, scales: torch.Tensor) -> tuple[int, int]:
    return codes.data_ptr(), scales.data_ptr()


def _version(x: torch.Tensor) -> int:
    """How often x was written to; 0 where torch does not count."""
    return 0 if x.is_inference() else x._version


def join(model: nn.Module, file: File, view: Callable[[Plane], torch.Tensor | None]) -> None:
    """Join the layers of a model over ``file`` that can be.

    Args:
        view: a plane where the layers have their codes: of the mapped pages, or of an arena; None if it is not there.
    """
    for name, module in model.named_modules():
        for leaves in TOGETHER:
            layers: list[Any] = [module._modules.get(leaf) for leaf in leaves]
            codes = _codes(file, [f"{name}.{leaf}.weight" for leaf in leaves])
            if codes is None or not all(hasattr(layer, "int8_rows") for layer in layers):
                continue
            whole = view(codes)
            if whole is None:
                continue
            joined = Joined(layers, whole)
            for layer in layers:
                layer.joined = joined


def _codes(file: File, names: list[str]) -> Plane | None:
    """One plane in the place of those of the tensors' codes; None if they are not int8 rows that follow each other."""
    infos = [file.info(name) for name in names if name in file]
    if len(infos) < len(names) or any(type(info.scheme) is not Int8 or len(info.shape) != 2 for info in infos):
        return None
    planes = [next(plane for plane in info.planes if plane.role == "codes") for info in infos]
    if any(a.offset + a.length != b.offset or a.shape[1] != b.shape[1] for a, b in pairwise(planes)):
        return None
    rows, length = sum(plane.shape[0] for plane in planes), sum(plane.length for plane in planes)
    return replace(planes[0], shape=(rows, planes[0].shape[1]), length=length)
