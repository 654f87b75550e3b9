"""Builds the transformers model of a file, with parameters that are views of the mapping."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...container.signatures import Keys
from ...container.tables import Plane, TensorInfo
from ...dtypes import DTYPES
from ...errors import LoadError, MissingPackageError, told_by
from ...file import sharded_reader
from ...file.reader import File, Level
from ...file.sharded_reader import Opened
from ...hf import compat, generation
from ...hf.config import build_config, empty_model
from ...hf.limits import Limits
from ...hf.vocabulary import check_special_ids, vocabulary_size
from ...io.mapped import Path
from ...schemes.base import FLOATS, swapped
from ...schemes.plain import Plain

try:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

    from ...interop import dtype_name, to_torch, torch_dtypes
    from ..bnb_compat import Linear4bit
    from ..layers import attention
    from ..layers.dequantized import QuantizedLinear
    from ..layers.experts import QuantizedExperts
    from ..layers.fused import fuse
    from ..layers.norms import replace_norms
    from ..read_only import WHAT, ReadOnly, open_writable
    from .arena import LINKS, Arena
    from .arguments import Options
    from .modules import THRESHOLD, Linear8bitLt, Target, builder_for, planes_for
    from .saving import let_save
except ImportError as error:
    if error.name is None:  # what transformers makes of any error while it is imported
        raise LoadError(f"transformers cannot be imported: {told_by(error.__cause__ or error)}") from error
    raise MissingPackageError(f"loading a model needs {error.name}: pip install 'aibit-format[hf]'") from error

if TYPE_CHECKING:
    from .tensor_parallel import Slices


def build(
    path: Path | Opened, verify: Level, signed_by: Keys | None, options: Options
) -> tuple[Opened, PreTrainedModel]:
    """Return the open file and its model; see ``load_model``."""
    device, tp = options.device, options.tp
    # Where all bytes pass through our hands on their way, they are checked there, and not read for that before.
    passing = verify == "full" and device.type in LINKS and tp is None and not isinstance(path, Opened)
    file = (
        path
        if isinstance(path, Opened)
        else sharded_reader.open_local(path, "touched" if passing else verify, signed_by)
    )
    config, architecture = _config(file)
    limits = Limits.of(math.prod(file.info(name).shape) for name in file)
    built = build_config(config, limits, options.dtype)
    vocabulary = vocabulary_size(config)
    check_special_ids("config.json", config, vocabulary, type(built))
    model = empty_model(built, architecture, limits, file, options.attn_implementation)
    # Elsewhere everything is a copy. Each model has pages of its own, or they would write to each other's weights.
    mine, writable = open_writable(file) if device.type == "cpu" else (file, True)
    slices = _slices(mine, model, tp)
    assembly = _Assembly(mine, model, options, slices)
    if passing:
        for part in file.parts:
            part.verify_rest()
    assembly.run()
    for module in model.modules():
        if isinstance(module, QuantizedLinear | QuantizedExperts):
            module.activations = options.activations
    if not writable:
        _refuse_writes(model, mine)
    _finish(file, model, vocabulary, options.trainable)
    if device.type == "cpu" and options.attn_implementation is None and (options.weight_only or _is_packed(model)):
        attention.attend_faster(model)
        replace_norms(model)
    if slices is not None:
        slices.connect()
    return file, model


def _is_packed(model: PreTrainedModel) -> bool:
    """Return whether linear layers of a model are multiplied as they are packed, which nobody else's layers do."""
    return any(isinstance(module, QuantizedLinear) and module.is_packed for module in model.modules())


def _slices(file: Opened, model: PreTrainedModel, tp: Any) -> Slices | None:
    """Return what this process has of the model; ``None`` for all of it."""
    if tp is None:
        return None
    from .tensor_parallel import Slices, ranks_of  # transformers' side of it is slow to import, where nothing else has

    ranks = ranks_of(tp)
    return Slices(file, model, ranks) if ranks.count > 1 else None


def _config(file: Opened) -> tuple[dict[str, Any], str]:
    """Return the parsed config and the architecture's name, checked before transformers sees either."""
    sharded_reader.whole(file)
    if "config.json" not in file.documents or "model.architecture" not in file.metadata:
        why = file.metadata.get("model.missing", "no config.json or no model.architecture")
        raise LoadError(f"{file.path}: holds tensors but no model: {why}")
    return _json_object(file, "config.json"), file.metadata["model.architecture"]


def _json_object(file: Opened, name: str) -> dict[str, Any]:
    """Return the checked value of a document that must be an object."""
    value = file.check_document(name)
    if not isinstance(value, dict):
        raise LoadError(f"{file.path}: {name} is {type(value).__name__}, and no JSON object")
    return value


class _Assembly:
    """Puts a file's tensors into an empty model."""

    def __init__(self, file: Opened, model: PreTrainedModel, options: Options, slices: Slices | None) -> None:
        self.file, self.model, self.options, self.slices = file, model, options, slices
        self.device = device = options.device
        # All of a parameter will be written to: faster in one copy than page by page.
        self.copied = options.trainable and device.type == "cpu"
        dtype = file.metadata.get("quantization.compute_dtype")
        if dtype is not None and dtype not in FLOATS:
            raise LoadError(f"{file.path}: quantization.compute_dtype {dtype!r}, expected one of {', '.join(FLOATS)}")
        dtype = options.dtype or dtype
        threshold = file.metadata.get("quantization.outlier_threshold", THRESHOLD)
        self.target = Target(device, torch_dtypes()[dtype] if dtype else None, threshold, options.weight_only)
        self.empty: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self.buffers = dict(model.named_buffers())
        self.in_float32 = compat.float32_names(model)
        self.targets = {alias for name in file if (alias := file.info(name).alias_of) is not None}
        self.placed: dict[str | None, tuple[TensorInfo, dict[str, torch.Tensor]]] = {}  # those that others are tied to
        self._check_names()
        for name in file:
            self._check_shape(file.info(name))
        self.arenas: dict[File, Arena] = {}
        if device.type in LINKS and slices is None:
            self.arenas = {part: Arena(part, self._wanted(part), device) for part in file.parts}

    def _wanted(self, part: File) -> Iterator[Plane]:
        """Yield the planes that the model holds as they are; what is decoded or cast on the way is not among them."""
        for name in part:
            info = self.file.info(name)
            owner, _, leaf = name.rpartition(".")
            if builder_for(self.model.get_submodule(owner), leaf, info, self.target) is not None:
                yield from planes_for(info, self.target)
            elif isinstance(info.scheme, Plain) and info.dtype == self._dtype(name):
                yield from info.planes

    def run(self) -> None:
        """Place every tensor, then make sure that nothing is left empty."""
        for name in self.file:
            info = self.file.info(name)
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            build = builder_for(module, leaf, info, self.target)
            if build is not None:
                info, planes = self._planes(info)
                built = build(module, self._computed(module, info), planes, self.target)
                if isinstance(built, QuantizedExperts):  # of which a module may have several
                    del module._parameters[leaf]
                    module.add_module(leaf, built)
                    continue
                bias = module._parameters.get("bias")
                if bias is not None:  # still empty, or already placed
                    built.bias = bias
                compat.remember_replaced(built, type(module))
                self.model.set_submodule(owner, built)
            elif (tied := self._tied_to(info)) is not None:
                module.register_parameter(leaf, tied)
            elif name in self.buffers:
                module.register_buffer(leaf, self._values(info), persistent=True)
            else:
                module.register_parameter(leaf, nn.Parameter(self._values(info), requires_grad=False))
        if any(isinstance(module, QuantizedExperts) for module in self.model.modules()):
            compat.run_experts_by_themselves(self.model)
        for name, buffer in list(self.model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[leaf] = buffer.to(self.device)
        # On a GPU bitsandbytes computes, but where that was not wanted.
        if self.slices is None and (self.device.type == "cpu" or self.target.weight_only):
            for part in self.file.parts:  # layers whose codes follow each other lie in one file
                fuse(self.model, part, partial(self._view, part))
        empty = [name for name, value in self.model.named_parameters() if value.device.type == "meta"]
        if empty:
            raise LoadError(f"{self.file.path}: {len(empty)} parameters stayed empty: {', '.join(empty[:5])}")

    def _view(self, part: File, plane: Plane) -> torch.Tensor | None:
        """Return a plane of a file where the model has it; None where each was copied or fetched by itself."""
        arena = self.arenas.get(part)
        if arena is not None:
            return arena.view(plane) if plane in arena else None
        mapped = self.device.type == "cpu" and not part.storage.chunk_size
        return to_torch(part.view(plane), plane.dtype) if mapped else None

    def _check_names(self) -> None:
        known = self.empty.keys() | self.buffers.keys()
        names = set(self.file)
        if unknown := sorted(names - known):
            raise LoadError(
                f"{self.file.path}: {len(unknown)} tensors have no place in {type(self.model).__name__}: "
                f"{', '.join(unknown[:5])}"
            )
        wanted = {**self.empty, **self.buffers}
        if missing := sorted(key for key in wanted.keys() - names if wanted[key].device.type == "meta"):
            raise LoadError(
                f"{self.file.path}: {type(self.model).__name__} needs {len(missing)} tensors that are not in the file: "
                f"{', '.join(missing[:5])}"
            )

    def _check_shape(self, info: TensorInfo) -> None:
        wanted = tuple(self._place(info.name).shape)
        found = swapped(info.shape) if info.transposed else info.shape
        if found != wanted:
            raise LoadError(
                f"{self.file.path}: tensor {info.name!r} has shape {list(found)}, "
                f"{type(self.model).__name__} with this config wants {list(wanted)}"
            )

    def _place(self, name: str) -> torch.Tensor:
        """Return what the empty model has under this name: a parameter on the meta device, or a buffer."""
        return self.empty[name] if name in self.empty else self.buffers[name]

    def _read(self, info: TensorInfo) -> tuple[TensorInfo, dict[str, np.ndarray]]:
        """Return the tensor and its planes, checked; with several processes, what this one has of them."""
        if self.slices is not None:
            return self.slices.read(info)
        planes = self.file.planes(info.name)
        # bitsandbytes checks nothing: a scale that lies would reach its kernels.
        self.file.check_values(info, planes)
        return info, planes

    def _tied_to(self, info: TensorInfo) -> nn.Parameter | None:
        """Return the parameter that an alias is; ``None`` if it is none, or its target stayed in its planes."""
        if info.alias_of is None:
            return None
        owner, _, leaf = info.alias_of.rpartition(".")
        return self.model.get_submodule(owner)._parameters.get(leaf)

    def _planes(self, info: TensorInfo) -> tuple[TensorInfo, dict[str, torch.Tensor]]:
        """Return the tensor and its planes on the device: on a CPU the mapped pages, elsewhere a view or one copy.

        Tensors that are tied have the same planes in memory.
        """
        if info.alias_of in self.placed:
            found, planes = self.placed[info.alias_of]
            return replace(found, name=info.name), planes
        found, planes = self._placed(info)
        if info.name in self.targets:
            self.placed[info.name] = found, planes
        return found, planes

    def _placed(self, info: TensorInfo) -> tuple[TensorInfo, dict[str, torch.Tensor]]:
        wanted = planes_for(info, self.target)
        info, planes = self._read(info)
        arena = self.arenas.get(self.file.part(info.name))
        if arena is not None and all(plane in arena for plane in wanted):
            return info, {plane.role: arena.view(plane) for plane in wanted}
        dtypes = {spec.role: spec.dtype for spec in info.scheme.planes(info.shape, info.dtype)}
        roles = [plane.role for plane in wanted if plane.role in planes]  # a rank's rows may be in a simpler scheme
        return info, {role: to_torch(planes[role], dtypes[role]).to(self.device) for role in roles}

    def _values(self, info: TensorInfo) -> torch.Tensor:
        """Return the values in the dtype the model computes in."""
        if isinstance(info.scheme, Plain) and not DTYPES[info.dtype].is_packed:
            values = self._planes(info)[1]["values"]
            values = values.clone() if self.copied and values.is_floating_point() else values
        else:
            info, planes = self._read(info)
            decoded = info.scheme.decode(planes, info.shape, info.dtype)
            values = torch.from_numpy(
                np.ascontiguousarray(np.swapaxes(decoded, -1, -2) if info.transposed else decoded)
            ).to(self.device)
        return values.to(torch_dtypes()[self._dtype(info.name)])

    def _computed(self, module: nn.Module, info: TensorInfo) -> TensorInfo:
        """Return a quantized tensor with the logical dtype in which its values are to be computed with.

        What is looked up has the dtype of the model, where products have that of their inputs.
        """
        follows = self.options.dtype is not None or isinstance(module, nn.Embedding)
        return replace(info, dtype=self._dtype(info.name)) if follows else info

    def _dtype(self, name: str) -> str:
        """Return the dtype in which the model has a parameter or buffer that is not quantized."""
        place = self._place(name)
        return "f32" if place.is_floating_point() and self.in_float32(name) else dtype_name(place.dtype)


def _refuse_writes(model: PreTrainedModel, file: Opened) -> None:
    """Make writing to weights of a model over read-only pages an error."""
    starts = [(part.storage.read_at(0, 1).ctypes.data, part.storage.size) for part in file.parts]

    def is_mapped(tensor: torch.Tensor | None) -> bool:
        return tensor is not None and any(0 <= tensor.data_ptr() - start < size for start, size in starts)

    made: dict[int, nn.Parameter] = {}  # those that are tied stay one
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if is_mapped(buffer):
                module._buffers[name] = buffer.as_subclass(ReadOnly)  # type: ignore[union-attr]
        for name, parameter in module._parameters.items():
            if type(parameter) is nn.Parameter and is_mapped(parameter):  # not those of bitsandbytes, its codes
                wrapped = nn.Parameter(parameter.data.as_subclass(ReadOnly), requires_grad=False)
                module._parameters[name] = made.setdefault(id(parameter), wrapped)
    model.register_load_state_dict_pre_hook(_refuse_state_dict)


def _refuse_state_dict(*_: Any) -> None:
    raise LoadError(f"load_state_dict: {WHAT}")


def _finish(file: Opened, model: PreTrainedModel, vocabulary: int | None, trainable: bool) -> None:
    """Set what ``from_pretrained`` also sets: eval mode, generation defaults, and what PEFT and saving look for."""
    model.requires_grad_(False)
    for parameter in model.parameters() if trainable else ():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    model.eval()
    if model.can_generate() and "generation_config.json" in file.documents:
        model.generation_config = _generation_config(file, vocabulary, type(model.config))
    _mark_quantized(model)
    let_save(model)


def _generation_config(file: Opened, vocabulary: int | None, family: type) -> GenerationConfig:
    values = _json_object(file, "generation_config.json")
    check_special_ids("generation_config.json", values, vocabulary, family)
    try:
        return GenerationConfig.from_dict(generation.checked(values))
    except LoadError:
        raise
    except Exception as error:  # validators of many kinds run inside
        raise LoadError(f"{file.path}: generation_config.json is refused by transformers: {told_by(error)}") from error


def read_config(path: Path) -> tuple[PreTrainedConfig, GenerationConfig | None]:
    """Return the configuration of a file's model, and its defaults of generation if it has some; no weight is read.

    Raises:
        FormatError: the file is not valid.
        LoadError: it holds no model, or transformers refuses what it says.
    """
    with sharded_reader.open(path) as file:
        config, architecture = _config(file)
        built = build_config(config, Limits.of(math.prod(file.info(name).shape) for name in file), None)
        vocabulary = vocabulary_size(config)
        check_special_ids("config.json", config, vocabulary, type(built))
        built.architectures = [architecture]
        built.name_or_path = str(file.path)
        has_defaults = "generation_config.json" in file.documents
        return built, _generation_config(file, vocabulary, type(built)) if has_defaults else None


# Layer of bitsandbytes -> argument of its configuration.
_KINDS: dict[type[nn.Module], str] = {Linear8bitLt: "load_in_8bit", Linear4bit: "load_in_4bit"}


def _kept(model: PreTrainedModel, kind: type[nn.Module]) -> list[str]:
    """Return ``llm_int8_skip_modules`` for which transformers makes layers of ``kind`` where the model has them."""
    modules = dict(model.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, kind)]
    linears = (QuantizedLinear, *(other for other in _KINDS if other is not kind))
    others = [name for name, module in modules.items() if type(module) is nn.Linear or isinstance(module, linears)]
    # A plain name also matches longer names that begin or end with it; if one of them is a layer, it is anchored.
    return [
        name if all(compat.is_quantized_beside(layer, [name]) for layer in layers) else f"^{re.escape(name)}$"
        for name in others
    ]


def _mark_quantized(model: PreTrainedModel) -> None:
    """Set what transformers and PEFT look for on a model with bitsandbytes layers.

    transformers knows one quantizer a model: where both kinds of layer are there, it is that of the larger number.
    """
    counts = {kind: sum(isinstance(m, kind) for m in model.modules()) for kind in _KINDS}
    kind = max(counts, key=lambda kind: counts[kind])
    if not counts[kind]:
        return
    kept = _kept(model, kind)
    options: dict[str, Any] = {_KINDS[kind]: True, "llm_int8_skip_modules": kept}
    layer: Any = next(m for m in model.modules() if isinstance(m, kind))
    if kind is Linear8bitLt:
        options["llm_int8_threshold"] = layer.state.threshold
    else:
        options |= {
            "bnb_4bit_quant_type": layer.weight.quant_type,
            "bnb_4bit_use_double_quant": layer.weight.compress_statistics,
            "bnb_4bit_compute_dtype": layer.compute_dtype,
        }
    present = [argument for found, argument in _KINDS.items() if counts[found]]
    compat.mark_quantized(model, BitsAndBytesConfig(**options), kept, present)
