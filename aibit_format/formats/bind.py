"""Matches the tensors of a source to a model's parameters, as transformers does when it loads the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import interop
from ..dtypes import DTYPES
from ..errors import SourceError, told_by
from ..hf.checkpoint_names import CheckpointNames, derived, not_used_on_purpose, stacks
from ..hf.meta_model import MetaModel
from ..schemes.base import swapped
from ..schemes.plain import Plain
from .join import Joined, joined
from .sources import Source, SourceTensor, values

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Binding:
    """Name the source tensors that fill a parameter; ``read`` returns the parameter's values and their dtype.

    There are no source tensors for a parameter that the model computes itself.
    """

    sources: tuple[str, ...]
    read: Callable[[], tuple[np.ndarray, str]] | None  # None: the one source tensor, unchanged
    joined: Joined | None = None  # the parameter as it is quantized, where it is made of quantized tensors


def bind(model: MetaModel, source: Source) -> tuple[dict[str, Binding], list[str]]:
    """Match a source's tensors to a model's parameters, as transformers does when it loads a checkpoint.

    Names may have the prefixes of wrappers (``torch.compile``, ``DataParallel``, PEFT) that the model itself lacks.

    Returns the bindings by the names of the parameters, and the names of the source tensors that no parameter uses and
    that the model is not known to compute itself.

    Raises:
        SourceError: no tensor matches a parameter, two different ones do, or one has another shape than its parameter.
    """
    state = model.module.state_dict()
    names, expected = CheckpointNames(model.module), not_used_on_purpose(model.module)
    groups: dict[str, list[tuple[str, str | None]]] = {}
    unused: list[str] = []
    for key in sorted(source.tensors, key=_natural):
        renamed, pattern = key, None
        for name in dict.fromkeys((key, unwrapped(key))):
            renamed, pattern = names.rename(name)
            if renamed not in state and name in state:
                renamed, pattern = name, None
            if renamed in state:
                break
        if renamed in state:
            groups.setdefault(renamed, []).append((key, pattern))
        elif not expected(renamed):
            unused.append(key)
    bindings: dict[str, Binding] = {}
    for target, members in groups.items():
        keys = tuple(key for key, _ in members)
        if members[0][1] is None:
            _check_same(source, target, keys)
            bindings[target] = Binding(keys[:1], None)
            continue
        group = _Group(target, members, names.converters, model.module, source)
        for name in group.targets(state):
            bindings[name] = Binding(keys, group.reader(name), group.joined(name))
    missing = _missing(model, bindings)
    for name, made in derived(model.module, missing).items():
        bindings[name] = Binding((), partial(interop.to_numpy, made))
    _check(model, bindings, source.tensors)
    return bindings, unused


def binding_of(model: MetaModel, bindings: Mapping[str, Binding], name: str) -> Binding | None:
    """Return the binding of a parameter; of a tied one, a checkpoint may hold the values under any of their names."""
    root = model.ties.get(name, name)
    return bindings.get(name) or next((bindings[key] for key in bindings if model.ties.get(key, key) == root), None)


def _missing(model: MetaModel, bindings: Mapping[str, Binding]) -> list[str]:
    """Return the names of parameters that nothing is bound to, under any name that they are tied to."""
    filled = {model.ties.get(name, name) for name in bindings}
    return [
        name
        for name, parameter in model.parameters.items()
        if model.ties.get(name, name) not in filled and parameter.role != "buffer"
    ]


def _check(model: MetaModel, bindings: Mapping[str, Binding], tensors: Mapping[str, SourceTensor]) -> None:
    if missing := _missing(model, bindings):
        raise SourceError(f"{model.architecture} needs tensors that the checkpoint lacks: {listed(missing)}")
    for name, binding in bindings.items():
        wanted = model.parameters[name].dtype
        for found in (tensors[key] for key in binding.sources):
            plain = isinstance(found.stored, Plain)
            if plain and DTYPES[wanted].is_float and not DTYPES[found.dtype].is_float:
                raise SourceError(
                    f"{found.file}: tensor {found.name!r} is {found.dtype}, {model.architecture} wants {wanted}: "
                    "codes of a quantized weight, and no quantization_config in config.json says what they stand for"
                )
        if binding.read is not None:
            continue
        found = tensors[binding.sources[0]]
        shape = swapped(found.shape) if found.transposed else found.shape
        if shape != model.parameters[name].shape:
            raise SourceError(
                f"{found.file}: tensor {found.name!r} has shape {list(shape)}, "
                f"{model.architecture} with this config wants {list(model.parameters[name].shape)}"
            )


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


# Put around a model, or a part of one, by torch.compile, DataParallel and DDP, FSDP, activation checkpointing and PEFT.
_WRAPPED = re.compile(
    r"^(base_model\.model|module)\.|(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def unwrapped(name: str) -> str:
    """Return a tensor's name without what wrappers put into it: ``module._orig_mod.lm_head.weight`` is lm_head's."""
    while (shorter := _WRAPPED.sub("", name)) != name:
        name = shorter
    return name


def _check_same(source: Source, target: str, keys: Sequence[str]) -> None:
    """Raise SourceError if several tensors that are meant for one parameter differ: all but one would be lost."""
    first, *others = keys
    for key in others:
        if source.tensors[key].shape != source.tensors[first].shape or not np.array_equal(
            values(source, key)[0], values(source, first)[0]
        ):
            raise SourceError(f"{source.path}: tensors {first!r} and {key!r} are both {target!r}, and differ")


class _Group:
    """Convert source tensors that transformers joins or splits into one or more tensors of the model."""

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
        """Return the names of the resulting tensors: the target, and for each other pattern the name made with it."""
        first, *others = self._converter.target_patterns
        names = [self._target, *(self._target.replace(first, other) for other in others)]
        return [name for name in dict.fromkeys(names) if name in state]

    def reader(self, name: str) -> Callable[[], tuple[np.ndarray, str]]:
        """Return a function that makes the tensor ``name``. Others that result with it are kept until they are read."""

        def make() -> tuple[np.ndarray, str]:
            if name not in self._made:
                self._made.update(self._convert())
            made = self._made.pop(name)
            if made[0].shape != (wanted := tuple(self._model.get_parameter_or_buffer(name).shape)):
                keys = listed([key for key, _ in self._members])
                raise SourceError(
                    f"{self._source.path}: {keys} become {name!r} of shape {list(made[0].shape)}, and the model with "
                    f"this config wants {list(wanted)}"
                )
            return made

        return make

    def joined(self, name: str) -> Joined | None:
        """Return the tensor ``name`` as it is quantized, and a function that reads its planes; None if it is not."""
        if name != self._target or not stacks(self._converter):
            return None
        parts = [[key for key, of in self._members if of == pattern] for pattern in self._converter.source_patterns]
        return joined(self._source, name, [part for part in parts if part])

    def _convert(self) -> dict[str, tuple[np.ndarray, str]]:
        import torch

        converter = deepcopy(self._converter)
        for key, pattern in self._members:
            converter.add_tensor(self._target, key, pattern, lambda key=key: self._tensor(key))
        try:
            with torch.no_grad():
                made = converter.convert(self._target, model=self._model, config=self._model.config)
        except RuntimeError as error:  # of torch, which was to view or join what does not fit
            keys = listed([key for key, _ in self._members])
            raise SourceError(f"{self._source.path}: {keys} cannot become {self._target}: {told_by(error)}") from error
        return {name: interop.to_numpy(value[0] if isinstance(value, list) else value) for name, value in made.items()}

    def _tensor(self, key: str) -> torch.Tensor:
        return interop.to_torch(*values(self._source, key))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key under which ``layers.10`` follows ``layers.9``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"\.", name)]
