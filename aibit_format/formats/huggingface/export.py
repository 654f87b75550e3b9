"""Exports to a directory that transformers and the libraries it uses load directly, quantized weights unchanged.

A checkpoint has one form (``forms``): that of the checkpoint that the file was made from, or the one that holds most of
its weights. What a form does not hold is written as values, if asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...container.tables import TensorInfo
from ...errors import WriteError
from ...file.progress import Progress
from ...file.sharded_reader import Opened
from ...hf import compat
from ...hf.checkpoint_names import CheckpointNames
from ...hf.layers import is_linear
from ...hf.meta_model import MetaModel
from ...schemes.ggml import GGML
from ...schemes.plain import Plain
from ..export_tensors import DTYPE_OPTIONS, config_of, documents_of, model_of, stored, values_item
from ..safetensors.writer import SHARD_BYTES, check_target, write_directory
from .experts import take_apart
from .forms import FORMS, Form, NotHeldError, Stored, form_class
from .settings import of_config


def export(
    file: Opened,
    path: str,
    *,
    dtype: str | None = None,
    type: str | None = None,
    max_shard_size: int | str = SHARD_BYTES,
    dequantize: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write the model directory ``path``; returns the paths written.

    Args:
        file: a file that holds a model.
        path: the directory.
        dtype: in which 4-bit layers of bitsandbytes compute: ``"f32"``, ``"f16"`` or ``"bf16"``; the model's dtype by
            default.
        type: the form of the quantized weights, one of ``forms.FORMS``; by default that of the checkpoint that the
            file was made from, or else the one that holds most weights.
        max_shard_size: most bytes of weights in one file, a number or a size such as ``"5GB"``.
        dequantize: write the values of tensors that the form does not hold. Without it they are an error.
        overwrite: replace files in a directory that is not empty.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        WriteError: the file holds no model, not all of its weights, or a tensor that the form does not hold; the
            directory is not empty, or cannot be written.
        LoadError: transformers does not know the architecture.
    """
    if dtype is not None and dtype not in DTYPE_OPTIONS:
        raise ValueError(f"dtype={dtype!r}: one of {', '.join(DTYPE_OPTIONS)}")
    if type is not None and type not in FORMS:
        raise WriteError(f"type {type!r} of a Hugging Face directory; known: {', '.join(FORMS)}")
    check_target(path, overwrite)
    config = config_of(file)
    if config is None or "model.architecture" not in file.metadata:
        raise WriteError(f"{file.path}: holds tensors but no model; --to safetensors writes them")
    model = model_of(file, config)
    infos = list(stored(file))
    chosen = _choose(file, infos, _places(model), [type] if type else FORMS, dtype)
    items = []
    for info in infos:
        if info.name in chosen.kept:
            items += map(chosen.form.item, chosen.kept[info.name])
        elif isinstance(info.scheme, Plain) or dequantize:
            items.append(values_item(file, info))
        else:
            instead = ", --to gguf to write it as it is," if isinstance(info.scheme.unordered, GGML) else ""
            raise WriteError(
                f"{file.path}: tensor {info.name!r} is stored as {info.scheme.text}, and {chosen.why[info.name]}: say "
                f"dequantize=True (--dequantize) to write its values,{instead} or --to safetensors to write those of "
                "every tensor"
            )
    if of_config(config).method is not None:  # MLX's, in a key of its own, of the source
        config = {key: value for key, value in config.items() if key != "quantization"}
    if chosen.kept:
        kept = [each for weights in chosen.kept.values() for each in weights]
        config = chosen.form.with_config(config, chosen.form.config(kept, _skipped(model, chosen.form, kept)))
    return write_directory(
        path, items, documents_of(file, config),
        max_shard_size=max_shard_size, overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """Describe a weight of the model that can be quantized: the kind of its module, and its shape as it is stored."""

    kind: str  # one of ``Form.PLACES``
    shape: tuple[int, ...]
    tied: bool
    parts: tuple[str, ...] = ()  # names in a checkpoint of the weights of experts, if it has one for each


def _places(model: MetaModel) -> dict[str, _Place]:
    """Find the weights that can be quantized, without those of modules that are kept in float32."""
    from torch import nn

    names = CheckpointNames(model.module)
    tied = {*model.ties, *model.ties.values()}
    never = compat.never_quantized(model.module)
    kinds = {f"{name}.weight": "conv1d" if conv1d else "linear" for name, conv1d in _linears(model).items()}
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Embedding):
            kinds[f"{name}.weight"] = "embedding"
    for name, each in model.parameters.items():
        if each.role == "experts":
            module = model.module.get_submodule(name.rpartition(".")[0])
            swapped = getattr(module, "is_transposed", False) or getattr(module, "has_bias", False)
            kinds[name] = "transposed experts" if swapped else "experts"
    found = {}
    for name, kind in kinds.items():
        if name in model.parameters and compat.is_quantized_beside(name.removesuffix(".weight"), never):
            parts = tuple(names.experts(name)) if kind == "experts" else ()
            found[name] = _Place(kind, model.parameters[name].shape, name in tied, parts)
    return found


def _linears(model: MetaModel) -> dict[str, bool]:
    """Map the modules that transformers can replace by a quantized layer to whether each is a Conv1D."""
    modules = model.module.named_modules()
    return {name: compat.is_conv1d(module) for name, module in modules if is_linear(module)}


@dataclass(frozen=True, slots=True)
class _Choice:
    """Hold the form that is written, the tensors that stay quantized in it by name, and why others do not."""

    form: Form
    kept: dict[str, list[Stored]]
    why: dict[str, str]

    @property
    def elements(self) -> int:
        """Return the number of elements that stay quantized."""
        return sum(each.elements for weights in self.kept.values() for each in weights)


def _choose(
    file: Opened, infos: Sequence[TensorInfo], places: Mapping[str, _Place], names: Sequence[str] | Mapping[str, str],
    dtype: str | None,
) -> _Choice:  # fmt: skip
    """Choose the form of the source if it holds anything, or else the one that holds most elements."""
    best: _Choice | None = None
    for name in names:
        found = _held(form_class(name)(file, dtype), file, infos, places)
        if found.kept and found.form.said:
            return found
        if best is None or found.elements > best.elements:
            best = found
    if best is None:
        raise ValueError("no forms to choose from")
    if best.kept or len(names) == 1:
        return best
    why = "no form of checkpoint that is written here holds that"
    return _Choice(best.form, {}, {**dict.fromkeys(best.why, why), **_misplaced(infos, places)})


def _held(form: Form, file: Opened, infos: Sequence[TensorInfo], places: Mapping[str, _Place]) -> _Choice:
    """Find the tensors that a form holds with the settings that most of them have."""
    why: dict[str, str] = {}
    fitting: dict[str, tuple[list[Stored], Hashable]] = {}
    for info in (info for info in infos if not isinstance(info.scheme, Plain)):
        try:
            place = places.get(info.name)
            tensors = [stored_tensor(file, info, place.kind if place else "linear")]
            if place is not None and place.kind == "experts" and info.shape == place.shape and not form.fused:
                tensors = take_apart(tensors[0], place.parts) if place.parts else tensors
            settings = form.settings(tensors[0])
            _check_place(form, info, place)
            fitting[info.name] = tensors, settings
        except NotHeldError as error:
            why[info.name] = str(error)
    sizes: Counter[Hashable] = Counter()
    for tensors, settings in fitting.values():
        sizes[settings] += sum(each.elements for each in tensors) if settings is not None else 0
    most = max(sizes, key=lambda settings: sizes[settings], default=None)
    kept = {}
    for name, (tensors, settings) in fitting.items():
        if settings in (most, None):
            kept[name] = tensors
        else:
            why[name] = f"most of the model goes into {form.name}: {most}, while a checkpoint has one kind of weights"
    for name in [name for name in kept if _is_experts(places, name)]:
        owner = name.rpartition(".")[0]
        others = [each for each in places if _is_experts(places, each) and each.rpartition(".")[0] == owner]
        if any(each not in kept for each in others):
            why[name] = f"{form.name} does not hold the other weights of the same experts"
    return _Choice(form, {name: each for name, each in kept.items() if name not in why}, why)


def _is_experts(places: Mapping[str, _Place], name: str) -> bool:
    """Tell whether a weight is one of fused experts, whose layer has all of them quantized, or none."""
    return "experts" in places[name].kind


def stored_tensor(file: Opened, info: TensorInfo, kind: str = "linear") -> Stored:
    """Describe a quantized tensor of a file for a form."""

    def read() -> dict[str, np.ndarray]:
        planes = file.planes(info.name)
        file.check_values(info, planes)
        return planes

    return Stored(info.name, info.shape, info.dtype, info.scheme, read, info.transposed, kind)


def _check_place(form: Form, info: TensorInfo, place: _Place | None) -> None:
    """Raise NotHeldError unless a form has a layer in the place of the module of a tensor."""
    if place is None or place.kind not in form.PLACES or (place.tied and not form.TIED):
        tied = ", as it is tied to another" if place is not None and place.tied else ""
        raise NotHeldError(f"transformers puts no layer of {form.name} there{tied}")
    if place.kind == "experts" and not place.parts and not form.fused:
        raise NotHeldError(f"{form.name} has a weight for each expert, and checkpoints of this model have none")
    swaps = place.kind in ("conv1d", "transposed experts")
    shape = (*place.shape[:-2], *place.shape[:-3:-1]) if swaps else place.shape
    if (info.shape, info.transposed) != (shape, swaps):
        raise NotHeldError(f"its shape is {list(info.shape)} where the layer has {list(shape)}")


def _misplaced(infos: Sequence[TensorInfo], places: Mapping[str, _Place]) -> dict[str, str]:
    """Return why tensors that are no weights of layers stay quantized in no form."""
    return {info.name: "transformers puts no quantized layer there" for info in infos if info.name not in places}


def _skipped(model: MetaModel, form: Form, kept: Sequence[Stored]) -> list[str]:
    """Return the modules that transformers would make layers of, though their weights are not quantized."""
    owners = list(_linears(model))
    # Routers, which are Linears to other libraries.
    owners += [name for name, module in model.module.named_modules() if _is_matrix(module) and name not in owners]
    if not form.PLACES.isdisjoint({"experts", "transposed experts"}):
        owners += [name.rpartition(".")[0] for name, each in model.parameters.items() if each.role == "experts"]
    # A weight of a single expert is one of the module that holds all of them.
    layers = {owner for each in kept for owner in _around(each.module)}
    return [name for name in dict.fromkeys(owners) if name not in layers]


def _is_matrix(module: Any) -> bool:
    """Tell whether a module is a product with a matrix, whatever its class."""
    from torch import nn

    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _around(module: str) -> list[str]:
    """Return the names of a module and of those that it is in."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
