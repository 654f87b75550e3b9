"""Defines what a form of quantized checkpoint is to an export, and registers every form: one line each, here only.

A form says which schemes it holds, with which settings, as which tensors it writes a weight, and what the config says
of all of them. Each has its module beside the source that reads it back.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from ...errors import WriteError
from ...file.sharded_reader import Opened
from ...hf import compat
from ...schemes import Scheme
from ..safetensors.writer import Entry, Item
from .origin import Origin, origin_of

# Form -> "module:class". A file goes out in the form of the checkpoint that it was made from; any other in the form
# that holds most of its weights, the first of several.
FORMS: dict[str, str] = {
    "bitsandbytes": "aibit_format.formats.huggingface.bitsandbytes_export:BitsAndBytesForm",
    "fp8": "aibit_format.formats.fp8.export:Fp8Form",
    "mxfp4": "aibit_format.formats.mxfp4.export:MXFP4Form",
    "compressed-tensors": "aibit_format.formats.compressed_tensors.export:CompressedTensorsForm",
    "gptq": "aibit_format.formats.huggingface.gptq_export:GPTQForm",
    "awq": "aibit_format.formats.huggingface.awq_export:AWQForm",
    "mlx": "aibit_format.formats.mlx.export:MLXForm",
    "bitnet": "aibit_format.formats.bitnet.export:BitNetForm",
    "modelopt": "aibit_format.formats.modelopt.export:ModelOptForm",
    "gemma": "aibit_format.formats.gemma.export:GemmaForm",
}

Planes = Mapping[str, np.ndarray]


class NotHeldError(ValueError):
    """Raised for a tensor that a form does not hold; the message says why, and follows "and"."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Describe a quantized tensor that is to be written, and how its checked planes are read."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme
    read: Callable[[], Planes]
    transposed: bool = False
    kind: str = "linear"  # of its module, one of ``Form.PLACES``

    @property
    def module(self) -> str:
        """Return the name of the module that it is the weight of, or its own."""
        return self.name.removesuffix(".weight")

    @property
    def is_weight(self) -> bool:
        """Tell whether it is called the weight of a module; fused experts are not."""
        return self.name.endswith(".weight")

    @property
    def elements(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Describe a tensor that a weight becomes: its dtype and shape, and how it is made from the planes."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[Planes], np.ndarray]


class Form(ABC):
    """Write the weights of ``file`` as one kind of quantized checkpoint.

    Args:
        file: that holds the weights.
        dtype: in which layers compute, if the form says so.
    """

    name: ClassVar[str]
    METHODS: ClassVar[tuple[str, ...]]  # quant_method of its checkpoints
    PLACES: ClassVar[frozenset[str]] = frozenset({"linear"})  # linear, conv1d, embedding, experts, transposed experts
    TIED: ClassVar[bool] = False  # whether the weight of an embedding may be that of a head as well
    # Keys of the config that list modules which are not quantized; the first is written if the source had none.
    LISTS: ClassVar[tuple[str, ...]] = ("modules_to_not_convert",)

    def __init__(self, file: Opened, dtype: str | None = None) -> None:
        self.file, self.dtype = file, dtype
        found = origin_of(file.metadata)
        self.origin = found if found.method in self.METHODS else Origin(left_out=found.left_out)
        self.said = self.origin.said

    @abstractmethod
    def settings(self, stored: Stored) -> Hashable:
        """Return what must be equal for all weights of a checkpoint; ``None`` if the weight goes with any.

        Raises:
            NotHeldError: the form does not hold such a tensor.
        """

    @abstractmethod
    def parts(self, stored: Stored) -> dict[str, Part]:
        """Return the tensors that a weight becomes, by the endings of their names behind the module's."""

    @abstractmethod
    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        """Return what the config says of the quantization.

        Args:
            kept: the weights that are written quantized.
            skipped: the modules whose weights are not, though the form has a layer for such.
        """

    def item(self, stored: Stored) -> Item:
        """Return the tensors of a weight, to be written.

        Raises:
            WriteError: when they are made: the form cannot hold a value.
        """
        parts = self.parts(stored)
        entries = tuple(Entry(stored.module + end, part.dtype, part.shape) for end, part in parts.items())

        def make() -> list[np.ndarray]:
            planes = stored.read()
            return [np.ascontiguousarray(part.make(planes)).reshape(part.shape) for part in parts.values()]

        return Item(stored.name, entries, make)

    def with_config(self, config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
        """Return a ``config.json`` that says how weights are quantized."""
        return {**config, "quantization_config": dict(said)}

    @property
    def fused(self) -> bool:
        """Tell whether fused experts are written as they are, and not as a weight for each."""
        return False

    # For subclasses.

    def ending(self, choices: Sequence[str], default: str) -> str:
        """Return the ending that the source's parts had, one of several that mean the same."""
        return next((end for end in choices if end in self.origin.parts), default)

    def floats(self, end: str, role: str, dtype: str, shape: tuple[int, ...], also: Collection[str] = ()) -> Part:
        """Return the part for a plane of scales, with the dimensions that the source's had, and its dtype.

        Args:
            end: of the part's name.
            role: of the plane.
            dtype: of the plane.
            shape: of the part. Dimensions of 1 at its end are left out if the source's scales had fewer.
            also: dtypes with the same bytes; the first is written unless the source had another.
        """
        found = self.origin.part(end, (dtype, *also))
        rank = len(shape) if found is None else found[1]
        written = next(iter(also), dtype) if found is None else found[0]
        while len(shape) > rank and shape[-1] == 1:
            shape = shape[:-1]
        return Part(written, shape, lambda planes: planes[role])

    def error(self, stored: Stored, what: str) -> WriteError:
        """Make an error about a tensor."""
        return WriteError(f"{self.file.path}: tensor {stored.name!r}: {what}; say dequantize=True (--dequantize), or "
                          "--to safetensors to write values")  # fmt: skip

    def names_module(self, listed: str, module: str) -> bool:
        """Tell whether an entry of a list of modules means a module: by parts of its name, or to transformers."""
        literal = re.search(rf"(^|\.){re.escape(listed)}(\.|$)", module) is not None
        return literal or not compat.is_quantized_beside(module, [listed])

    def is_entry(self, listed: str) -> bool:
        """Tell whether a list of modules may have an entry, which is an expression to transformers."""
        return is_expression(listed)

    def entry(self, name: str, layers: Sequence[str]) -> str:
        """Return an entry of a list that means this module, and none of the layers."""
        return plain_name(name, layers)

    def lists(self, kept: Sequence[Stored], skipped: Iterable[str]) -> dict[str, list[str]]:
        """Return the lists of modules that are not quantized: what the source's say and is true, and what lacks."""
        modules = [stored.module for stored in kept]
        found: dict[str, list[str]] = {}
        for key in self.LISTS:
            names = self.said.get(key)
            if isinstance(names, list):
                entries = filter(self.is_entry, map(str, names))
                found[key] = [name for name in entries if not any(self.names_module(name, m) for m in modules)]
        listed = [name for names in found.values() for name in names]
        more = [name for name in skipped if not any(self.names_module(each, name) for each in listed)]
        key = next(iter(found), self.LISTS[0])
        return {**found, key: [*found.get(key, ()), *(self.entry(name, modules) for name in more)]}


def is_expression(text: str) -> bool:
    """Tell whether a text is a regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def plain_name(name: str, layers: Sequence[str]) -> str:
    """Return an entry that means this module and none of the layers to transformers.

    A plain name also matches longer names that begin or end with it; if one of them is a layer, it is anchored.
    """
    return name if all(compat.is_quantized_beside(layer, [name]) for layer in layers) else f"^{re.escape(name)}$"


def form_class(name: str) -> type[Form]:
    """Return the class of a registered form."""
    module, attribute = FORMS[name].split(":")
    return vars(import_module(module))[attribute]
