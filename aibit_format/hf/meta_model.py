"""What a model's own modules say of its tensors: which are Linear, which are tied, which must stay as they are.

The model is built from its configuration without memory for weights. transformers' own rules decide what is
quantized, as ``load_in_8bit`` would decide, and how names in a checkpoint become names in the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import interop
from ..errors import SourceError
from ..formats.sources import Source, SourceTensor, values
from .config import CONFIG_DTYPES, build_config, dtype_name, empty_model

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "conv1d", "kept", "experts", "other", "buffer"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor the model wants: its name, shape and dtype there, and what kind of weight it is.

    ``role``: ``linear`` and ``conv1d`` weights are quantized by default; ``kept`` ones are such weights that
    transformers leaves alone (heads, ties, modules kept in float32); ``experts`` are fused 3-D weights of a mixture
    of experts; ``buffer`` is what the constructor computes if a checkpoint lacks it; ``other`` is everything else.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role


@dataclass(frozen=True, slots=True)
class Binding:
    """How a slot is filled: from these tensors of the source, by ``read``, which gives values and their dtype."""

    sources: tuple[str, ...]
    read: Callable[[], tuple[np.ndarray, str]] | None  # None: the one source tensor as it is


@dataclass(frozen=True)
class Skeleton:
    """A model without weights: its slots in execution order, its ties, and its way of reading a checkpoint."""

    architecture: str
    model_type: str
    dtype: str
    slots: dict[str, Slot]
    ties: dict[str, str]  # name -> the first name, in execution order, of the tensor that both share
    model: Any

    def bind(self, source: Source) -> tuple[dict[str, Binding], list[str]]:
        """Match a checkpoint's tensors to the slots, as transformers would when loading it.

        Returns the binding of each slot that is filled, and the source tensors that no slot wants.

        Raises:
            SourceError: a slot stays empty, or a tensor has another shape than its slot.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        state = self.model.state_dict()
        mapping = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix = self.model.base_model_prefix
        groups: dict[str, list[tuple[str, str | None]]] = {}
        unused: list[str] = []
        for key in sorted(source.tensors, key=_natural):
            renamed, pattern = rename_source_key(key, renamings, converters, prefix, state)
            if renamed not in state and key in state:
                renamed, pattern = key, None
            if renamed in state:
                groups.setdefault(renamed, []).append((key, pattern))
            else:
                unused.append(key)
        bindings: dict[str, Binding] = {}
        for target, members in groups.items():
            keys = tuple(key for key, _ in members)
            if members[0][1] is None:
                bindings[target] = Binding(keys[:1], None)
                unused += keys[1:]
                continue
            group = _Group(target, members, by_pattern, self.model, source)
            for name in group.targets(state):
                bindings[name] = Binding(keys, group.reader(name))
        self._check(bindings, source.tensors)
        return bindings, unused

    def _check(self, bindings: Mapping[str, Binding], tensors: Mapping[str, SourceTensor]) -> None:
        filled = {self.ties.get(name, name) for name in bindings}
        missing = [
            name
            for name, slot in self.slots.items()
            if self.ties.get(name, name) not in filled and slot.role != "buffer"
        ]
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise SourceError(f"{self.architecture} needs tensors that the checkpoint lacks: {listed}")
        for name, binding in bindings.items():
            found = tensors[binding.sources[0]]
            shape = found.shape[::-1] if found.transposed else found.shape
            if binding.read is None and shape != self.slots[name].shape:
                raise SourceError(
                    f"{found.file}: tensor {found.name!r} has shape {list(shape)}, "
                    f"{self.architecture} with this config wants {list(self.slots[name].shape)}"
                )


def skeleton(config: Mapping[str, Any], architecture: str | None = None) -> Skeleton:
    """The skeleton of the model that a parsed ``config.json`` describes.

    Raises:
        SourceError: the config names no architecture and none is given.
        LoadError: transformers does not know it.
    """
    listed = config.get("architectures") or []
    name = architecture or (listed[0] if listed else None)
    if not isinstance(name, str):
        raise SourceError("config.json names no architecture; say which: --architecture LlamaForCausalLM")
    built = build_config(config)
    model = empty_model(built, name)
    kept = _kept_modules(model)
    buffers = {key for key, _ in model.named_buffers()}
    in_float32 = float32_rule(model)
    slots = {}
    for key, value in model.state_dict().items():
        role = "buffer" if key in buffers else _role(model, key, value, kept)
        dtype = "f32" if value.is_floating_point() and in_float32(key) else interop.dtype_name(value.dtype)
        slots[key] = Slot(key, tuple(value.shape), dtype, role)
    return Skeleton(name, built.model_type, CONFIG_DTYPES[dtype_name(config)], slots, _ties(model, slots), model)


def _ties(model: Any, slots: Iterable[str]) -> dict[str, str]:
    """Tied names, each with the first of its group: an alias in the file follows its target."""
    pairs = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    groups: dict[str, list[str]] = {}
    for name in slots:
        groups.setdefault(pairs.get(name, name), []).append(name)
    return {name: group[0] for group in groups.values() for name in group[1:]}


def float32_rule(model: Any) -> Callable[[str], bool]:
    """Which tensors ``from_pretrained`` keeps in float32 in a model of half precision."""
    from transformers.core_model_loading import build_glob_alternation

    patterns = model._get_dtype_plan(model.config.dtype)
    if not patterns:
        return lambda name: False
    expression = build_glob_alternation(list(patterns))[0]
    return lambda name: expression.search(name) is not None


def _role(model: torch.nn.Module, key: str, value: torch.Tensor, kept: list[str]) -> Role:
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    owner, _, leaf = key.rpartition(".")
    module = model.get_submodule(owner)
    if leaf == "weight" and (type(module) is nn.Linear or isinstance(module, Conv1D)):
        if not should_convert_module(owner, kept):
            return "kept"
        return "conv1d" if isinstance(module, Conv1D) else "linear"
    return "experts" if value.ndim == 3 and value.is_floating_point() and "expert" in key else "other"


def _kept_modules(model: Any) -> list[str]:
    """Modules that ``load_in_8bit`` does not quantize, by its own rule."""
    from transformers.quantizers.base import HfQuantizer

    return HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)


class _Group:
    """Source tensors that transformers joins or splits into one or more tensors of the model."""

    def __init__(
        self,
        target: str,
        members: Iterable[tuple[str, str | None]],
        converters: Mapping[str, Any],
        model: Any,
        source: Source,
    ) -> None:
        self._target, self._members, self._model = target, list(members), model
        self._converter = converters[self._members[0][1] or ""]
        self._source = source
        self._made: dict[str, tuple[np.ndarray, str]] = {}

    def targets(self, state: Mapping[str, Any]) -> list[str]:
        """Names of the tensors this group makes: the first target pattern's name, and the same with the others."""
        first, *others = self._converter.target_patterns
        names = [self._target, *(self._target.replace(first, other) for other in others)]
        return [name for name in dict.fromkeys(names) if name in state]

    def reader(self, name: str) -> Callable[[], tuple[np.ndarray, str]]:
        """A function that makes the tensor ``name``; siblings made on the way are kept until they are asked for."""

        def make() -> tuple[np.ndarray, str]:
            if name not in self._made:
                self._made.update(self._convert())
            return self._made.pop(name)

        return make

    def _convert(self) -> dict[str, tuple[np.ndarray, str]]:
        import torch

        converter = deepcopy(self._converter)
        for key, pattern in self._members:
            converter.add_tensor(self._target, key, pattern, lambda key=key: self._tensor(key))
        with torch.no_grad():
            made = converter.convert(self._target, model=self._model, config=self._model.config)
        return {name: interop.to_numpy(value[0] if isinstance(value, list) else value) for name, value in made.items()}

    def _tensor(self, key: str) -> torch.Tensor:
        return interop.to_torch(*values(self._source, key))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which ``layers.10`` follows ``layers.9``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"\.", name)]
