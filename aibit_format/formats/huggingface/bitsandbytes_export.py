"""Writes int8, nf4 and fp4 weights as bitsandbytes' layers save them.

int8 weights become ``bitsandbytes.nn.Linear8bitLt``'s entries (codes, ``SCB``, ``weight_format``), nf4 and fp4 ones
those of ``Linear4bit`` (codes, ``absmax``, ``quant_map``, nested ones, and the state as JSON in bytes): exactly the
tensors that transformers' ``save_pretrained`` writes for such a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from ...container.tables import TensorInfo
from ...file.sharded_reader import Opened
from ...schemes import capabilities
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK, FourBit, dynamic_map
from ...schemes.nf4_cpu import NF4CPU
from ..export_tensors import DTYPE_OPTIONS
from ..safetensors.writer import Entry, Item
from .forms import Form, NotHeldError, Part, Stored

_ROW_MAJOR = np.zeros((), np.uint8)  # weight_format: the only layout that bitsandbytes still has


@dataclass(frozen=True, slots=True)
class Layer:
    """Describe a tensor in a checkpoint that bitsandbytes loads: its entries, and the options of its kind of layer.

    ``family`` is the kind of layer; a model has only one kind. ``options`` are those of ``BitsAndBytesConfig``.
    """

    family: str
    item: Item
    options: dict[str, Any]


class BitsAndBytesForm(Form):
    """Write what the capability ``export_bnb`` of a scheme makes of its tensors."""

    name: ClassVar[str] = "bitsandbytes"
    METHODS = ("bitsandbytes",)
    PLACES = frozenset({"linear", "conv1d"})
    LISTS = ("llm_int8_skip_modules",)

    def settings(self, stored: Stored) -> str:
        if not capabilities.has(stored.scheme, "export_bnb"):
            raise NotHeldError("bitsandbytes has no layer for that")
        return f"{self._layer(stored).family} layers"

    def parts(self, stored: Stored) -> dict[str, Part]:
        raise NotImplementedError("entries of bitsandbytes' layers come from the capability")

    def item(self, stored: Stored) -> Item:
        return self._layer(stored).item

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        metadata = self.file.metadata
        said = self.dtype or metadata.get("quantization.compute_dtype") or metadata.get("model.dtype")
        options = self._layer(kept[0]).options
        compute = DTYPE_OPTIONS.get(str(said), "float32")
        more: dict[str, Any] = {"bnb_4bit_compute_dtype": compute} if options.get("load_in_4bit") else {}
        more |= self.lists(kept, skipped)
        return BitsAndBytesConfig(**options, **more).to_dict()

    def _layer(self, stored: Stored) -> Layer:
        make = capabilities.find(stored.scheme, "export_bnb")
        if make is None:
            raise self.error(stored, f"bitsandbytes has no layer for {stored.scheme.text}")
        return make(self.file, self.file.info(stored.name))


def int8_layer(file: Opened, info: TensorInfo) -> Layer:
    """Lay out int8 rows as ``Linear8bitLt`` saves them."""
    owner = info.name.removesuffix(".weight")
    entries = (
        Entry(info.name, "i8", info.shape),
        Entry(f"{owner}.SCB", "f32", info.shape[:-1]),
        Entry(f"{owner}.weight_format", "u8", ()),
    )

    def make() -> list[np.ndarray]:
        planes = file.planes(info.name)
        file.check_values(info, planes)
        return [planes["codes"], planes["row_absmax"], _ROW_MAJOR]

    threshold = file.metadata.get("quantization.outlier_threshold")
    options = {"load_in_8bit": True} | ({} if threshold is None else {"llm_int8_threshold": threshold})
    return Layer("8-bit", Item(info.name, entries, make), options)


def four_bit_layer(file: Opened, info: TensorInfo) -> Layer:
    """Lay out 4-bit blocks as ``Linear4bit`` saves them."""
    return _four_bit(file, info, cast(FourBit, info.scheme))


def nf4_cpu_layer(file: Opened, info: TensorInfo) -> Layer:
    """Lay out the nf4 planes that nf4-cpu holds beside its tiles, as ``Linear4bit`` saves them."""
    return _four_bit(file, info, cast(NF4CPU, info.scheme).canonical)


def _four_bit(file: Opened, info: TensorInfo, scheme: FourBit) -> Layer:
    planes = file.planes(info.name)
    offset = float(planes["nested_offset"][0]) if scheme.nested else None
    state = np.frombuffer(_state(info, scheme, offset), np.uint8)
    layout = {  # entry -> dtype, plane or values
        "": ("u8", planes["codes"][:, None]),
        ".absmax": ("u8" if scheme.nested else "f32", planes["absmax"]),
        ".quant_map": ("f32", CODEBOOKS[scheme.name].values),
        f".quant_state.bitsandbytes__{scheme.name}": ("u8", state),
    }
    if scheme.nested:
        layout[".nested_absmax"] = ("f32", planes["nested_absmax"])
        layout[".nested_quant_map"] = ("f32", dynamic_map())
    entries = tuple(Entry(info.name + part, dtype, array.shape) for part, (dtype, array) in layout.items())

    def make() -> list[np.ndarray]:
        file.check_values(info, planes)
        return [array for _, array in layout.values()]

    options: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": scheme.name,
        "bnb_4bit_use_double_quant": bool(scheme.nested),
    }
    return Layer("4-bit", Item(info.name, entries, make), options)


def _state(info: TensorInfo, scheme: FourBit, offset: float | None) -> bytes:
    """Write the JSON of ``QuantState.as_dict(packed=True)``, with its keys in its order."""
    state: dict[str, Any] = {
        "quant_type": scheme.name,
        "blocksize": scheme.block_size,
        "dtype": DTYPE_OPTIONS[info.dtype],
        "shape": list(info.shape),
    }
    if offset is not None:
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    return json.dumps(state).encode()
