"""Exports to a directory that transformers and bitsandbytes load directly, with the quantized weights unchanged.

int8 weights become ``bitsandbytes.nn.Linear8bitLt``'s entries (codes, ``SCB``, ``weight_format``), nf4 and fp4 ones
those of ``Linear4bit`` (codes, ``absmax``, ``quant_map``, nested ones, and the state as JSON in bytes): exactly the
tensors that transformers' ``save_pretrained`` writes for such a model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np

from ...container.tables import TensorInfo
from ...errors import WriteError
from ...file.progress import Progress
from ...file.sharded_reader import Opened
from ...hf import compat
from ...hf.layers import is_linear
from ...hf.limits import Limits
from ...hf.meta_model import MetaModel, build_meta_model
from ...schemes import capabilities
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK, FourBit, dynamic_map
from ...schemes.nf4_cpu import NF4CPU
from ...schemes.plain import Plain
from ..export_tensors import DTYPE_OPTIONS, config_of, documents_of, stored, values_item
from ..safetensors.writer import SHARD_BYTES, Entry, Item, check_target, write_directory

_ROW_MAJOR = np.zeros((), np.uint8)  # weight_format: the only layout that bitsandbytes still has


def export(
    file: Opened,
    path: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = SHARD_BYTES,
    dequantize: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write the model directory ``path``; returns the paths written.

    Args:
        file: a file that holds a model.
        path: the directory.
        dtype: in which 4-bit layers compute: ``"f32"``, ``"f16"`` or ``"bf16"``; the model's dtype by default.
        max_shard_size: most bytes of weights in one file, a number or a size such as ``"5GB"``.
        dequantize: write the values of tensors that have no bitsandbytes layer. Without it they are an error.
        overwrite: replace files in a directory that is not empty.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        WriteError: the file holds no model, or a tensor for which transformers has no bitsandbytes layer; the
            directory is not empty, or cannot be written.
        LoadError: transformers does not know the architecture.
    """
    if dtype is not None and dtype not in DTYPE_OPTIONS:
        raise ValueError(f"dtype={dtype!r}: one of {', '.join(DTYPE_OPTIONS)}")
    check_target(path, overwrite)
    config = config_of(file)
    if config is None or "model.architecture" not in file.metadata:
        raise WriteError(f"{file.path}: holds tensors but no model; --to safetensors writes them")
    limits = Limits.of(prod(file.info(name).shape) for name in file)
    model = build_meta_model(config, limits, file.metadata["model.architecture"])
    places = _places(model)
    family = _family(file, places)
    items, kept = [], []
    for info in stored(file):
        reason = _no_layer(file, info, places, family)
        if reason is None:
            items.append(_layer(file, info).item)
            kept.append(info)
        elif isinstance(info.scheme, Plain) or dequantize:
            items.append(values_item(file, info))
        else:
            raise WriteError(
                f"{file.path}: tensor {info.name!r} is stored as {info.scheme.text}, and {reason}: say dequantize=True "
                "(--dequantize) to write its values, or --to safetensors to write those of every tensor"
            )
    if kept:
        said = dtype or file.metadata.get("quantization.compute_dtype") or file.metadata.get("model.dtype")
        compute = DTYPE_OPTIONS.get(str(said), "float32")
        options = _layer(file, kept[0]).options
        config = {**config, "quantization_config": _quantization(options, _skipped(model, kept), compute)}
    return write_directory(
        path, items, documents_of(file, config),
        max_shard_size=max_shard_size, overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """Describe a weight of the model that transformers can put into a bitsandbytes layer, and its shape there."""

    shape: tuple[int, ...]
    transposed: bool  # Conv1D: the model's weight is the transpose of the one that the layer stores


def _places(model: MetaModel) -> dict[str, _Place]:
    """Find the weights that can go into bitsandbytes layers: never tied ones, nor those of modules kept in float32."""
    tied = {*model.ties, *model.ties.values()}
    never = compat.never_quantized(model.module)
    found = {}
    for name, conv1d in _linears(model).items():
        weight = f"{name}.weight"
        if weight not in tied and compat.is_quantized_beside(name, never):
            shape = model.parameters[weight].shape
            found[weight] = _Place(shape[::-1] if conv1d else shape, conv1d)
    return found


def _linears(model: MetaModel) -> dict[str, bool]:
    """Map the modules that transformers can replace by a bitsandbytes layer to whether each is a Conv1D."""
    modules = model.module.named_modules()
    return {name: compat.is_conv1d(module) for name, module in modules if is_linear(module)}


def _family(file: Opened, places: Mapping[str, _Place]) -> str | None:
    """Return the kind of layer that most weights go into; a model can have only one kind."""
    sizes: Counter[str] = Counter()
    for info in stored(file):
        if info.name in places and capabilities.has(info.scheme, "export_bnb"):
            sizes[_layer(file, info).family] += prod(info.shape)
    return max(sizes, key=lambda family: sizes[family], default=None)


def _no_layer(file: Opened, info: TensorInfo, places: Mapping[str, _Place], family: str | None) -> str | None:
    """Return why the tensor cannot stay quantized in a bitsandbytes layer; ``None`` if it can."""
    if not capabilities.has(info.scheme, "export_bnb"):
        return "bitsandbytes has no layer for that"
    if info.name not in places:
        return "transformers puts no layer of bitsandbytes there"
    place = places[info.name]
    if (info.shape, info.transposed) != (place.shape, place.transposed):
        return f"its shape is {list(info.shape)} where the layer has {list(place.shape)}"
    if _layer(file, info).family != family:
        return f"most of the model goes into {family} layers, while transformers gives a model one kind"
    return None


@dataclass(frozen=True, slots=True)
class Layer:
    """Describe a tensor in a checkpoint that bitsandbytes loads: its entries, and the options of its kind of layer.

    ``family`` is the kind of layer; a model has only one kind. ``options`` are those of ``BitsAndBytesConfig``.
    """

    family: str
    item: Item
    options: dict[str, Any]


def _layer(file: Opened, info: TensorInfo) -> Layer:
    make = capabilities.find(info.scheme, "export_bnb")
    if make is None:
        raise WriteError(f"{file.path}: tensor {info.name!r}: bitsandbytes has no layer for {info.scheme.text}")
    return make(file, info)


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


def _skipped(model: MetaModel, kept: Sequence[TensorInfo]) -> list[str]:
    """Choose ``llm_int8_skip_modules`` such that transformers makes layers of exactly the ``kept`` tensors' modules."""
    layers = [info.name.removesuffix(".weight") for info in kept]
    # A plain name also matches longer names that begin or end with it; if one of them is a layer, it is anchored.
    return [
        name if all(compat.is_quantized_beside(layer, [name]) for layer in layers) else f"^{re.escape(name)}$"
        for name in _linears(model)
        if name not in set(layers)
    ]


def _quantization(options: Mapping[str, Any], skipped: list[str], compute: str) -> dict[str, Any]:
    """Make ``quantization_config`` as transformers writes it."""
    from transformers import BitsAndBytesConfig

    four_bit: dict[str, Any] = {"bnb_4bit_compute_dtype": compute} if options.get("load_in_4bit") else {}
    return BitsAndBytesConfig(**options, **four_bit, llm_int8_skip_modules=skipped).to_dict()
