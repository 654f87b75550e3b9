"""Which tensor gets which scheme: a plan that is pure, printable, and done before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .draft import Tensor
from .dtypes import DTYPES
from .errors import RecipeError, SchemeError, SourceError
from .schemes import Scheme, make, parse
from .schemes.plain import Plain
from .skeleton import Binding, Skeleton, Slot
from .sources import Source


@dataclass(frozen=True)
class Recipe:
    """The scheme for the weights that are quantized, and exceptions by name.

    Linear weights (and GPT-2's Conv1D) get ``scheme``; heads, ties, embeddings, norms and whatever else
    transformers leaves alone keep the model's dtype. A rule ``(pattern, scheme)`` overrides both for the names that
    the regular expression is found in; the last one that matches wins.
    """

    scheme: Scheme
    rules: tuple[tuple[str, Scheme], ...] = ()

    @classmethod
    def of(cls, scheme: str, tensors: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> Recipe:
        """From names of schemes, as users give them.

        Raises:
            RecipeError: an unknown scheme, or a pattern that is no regular expression.
        """
        pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
        try:
            rules = tuple((re.compile(pattern).pattern, parse(name)) for pattern, name in pairs)
            return cls(parse(scheme), rules)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error.pattern!r}: {error}") from error
        except SchemeError as error:
            raise RecipeError(str(error)) from error

    def scheme_for(self, slot: Slot) -> Scheme:
        """The scheme of one tensor of a model."""
        for pattern, scheme in reversed(self.rules):
            if re.search(pattern, slot.name):
                return scheme
        return self.scheme if slot.role in ("linear", "conv1d") else make(slot.dtype)

    def lines(self) -> list[str]:
        """The recipe as the file keeps it: ``PATTERN=SCHEME``, the default first."""
        return [f"*={self.scheme.name}", *(f"{pattern}={scheme.name}" for pattern, scheme in self.rules)]


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file to be: how it is stored, and where its values come from.

    ``read`` gives the values in ``source_dtype``, not yet transposed; ``slot_dtype`` is what the model computes in,
    to which values are rounded first, as transformers does when it quantizes.
    """

    tensor: Tensor
    sources: tuple[str, ...]
    source_dtype: str
    slot_dtype: str
    source_bytes: int
    read: Callable[[], np.ndarray] | None

    @property
    def stored_bytes(self) -> int:
        """Bytes of its planes; none for an alias."""
        if self.tensor.alias_of is not None:
            return 0
        return sum(plane.nbytes for plane in self.tensor.scheme.planes(self.tensor.shape, self.tensor.dtype))

    @property
    def inexact(self) -> bool:
        """Whether decoded values may differ from the source's."""
        return self.tensor.scheme.lossy or self.tensor.scheme.name != self.source_dtype


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. Nothing has been read yet but headers."""

    source: Source
    skeleton: Skeleton
    recipe: Recipe
    tensors: tuple[Planned, ...]
    unused: tuple[str, ...]  # tensors of the source that the model has no place for

    @property
    def original_bytes(self) -> int:
        """Bytes of the weights in the source."""
        return sum(planned.source_bytes for planned in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all planes."""
        return sum(planned.stored_bytes for planned in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors that are not aliases."""
        return sum(int(np.prod(p.tensor.shape, dtype=object)) for p in self.tensors if p.tensor.alias_of is None)


def plan(source: Source, skeleton: Skeleton, recipe: Recipe) -> Plan:
    """Assign every tensor of the model its scheme and its source.

    Raises:
        SourceError: the checkpoint does not fit the model.
        RecipeError: a rule matches no tensor, or gives a tensor a scheme that cannot hold it.
    """
    bindings, unused = skeleton.bind(source.tensors, source.read)
    for pattern, _ in recipe.rules:
        if not any(re.search(pattern, name) for name in skeleton.slots):
            raise RecipeError(f"--tensor {pattern!r} matches no tensor of {skeleton.architecture}")
    owners: dict[str, str] = {}
    tensors: list[Planned] = []
    for name, slot in skeleton.slots.items():
        root = skeleton.ties.get(name, name)
        if root in owners:
            _check_tie(source, bindings, name, owners[root])
            tensors.append(_alias(tensors, name, owners[root]))
            continue
        binding = bindings.get(name) or _any_of_group(skeleton, bindings, root)
        if binding is None:
            continue  # a buffer that the constructor computes
        owners[root] = name
        tensors.append(_planned(source, slot, binding, recipe.scheme_for(slot)))
    return Plan(source, skeleton, recipe, tuple(tensors), tuple(unused))


def _planned(source: Source, slot: Slot, binding: Binding, scheme: Scheme) -> Planned:
    first = source.tensors[binding.sources[0]]
    read = binding.read or (lambda: source.read(first.name))
    nbytes = sum(_bytes(source.tensors[key].shape, source.tensors[key].dtype) for key in binding.sources)
    if not DTYPES[slot.dtype].is_float and isinstance(scheme, Plain):
        scheme = make(slot.dtype)  # a rule on names does not turn integers into floats
    transposed = slot.role == "conv1d" and not isinstance(scheme, Plain)
    shape = slot.shape[::-1] if transposed else slot.shape
    dtype = scheme.name if isinstance(scheme, Plain) else slot.dtype
    try:
        scheme.planes(shape, dtype)
    except SchemeError as error:
        raise RecipeError(f"tensor {slot.name!r}: {error}") from error
    tensor = Tensor(slot.name, shape, dtype, scheme, transposed=transposed)
    if binding.read is not None and len(binding.sources) > 1:
        nbytes = _bytes(slot.shape, first.dtype)  # joined or split: its share
    return Planned(tensor, binding.sources, first.dtype, slot.dtype, nbytes, read)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=object)) * DTYPES[dtype].bits // 8


def _alias(tensors: list[Planned], name: str, owner: str) -> Planned:
    target = next(planned for planned in tensors if planned.tensor.name == owner)
    t = target.tensor
    tensor = Tensor(name, t.shape, t.dtype, t.scheme, owner, t.transposed)
    return Planned(tensor, target.sources, target.source_dtype, target.slot_dtype, 0, None)


def _any_of_group(skeleton: Skeleton, bindings: Mapping[str, Binding], root: str) -> Binding | None:
    """A tie's values may stand in the checkpoint under any of its names."""
    return next((bindings[name] for name in bindings if skeleton.ties.get(name, name) == root), None)


def _check_tie(source: Source, bindings: Mapping[str, Binding], name: str, owner: str) -> None:
    """Tied tensors that a checkpoint holds twice must be the same, or one would be lost."""
    if name not in bindings or owner not in bindings:
        return
    a, b = bindings[name].sources[0], bindings[owner].sources[0]
    if a != b and not np.array_equal(source.read(a), source.read(b)):
        raise SourceError(
            f"{source.path}: the config ties {name!r} to {owner!r}, but the checkpoint holds two different tensors; "
            "set tie_word_embeddings to false in config.json to keep both"
        )
