"""Which tensor gets which scheme: a plan that is printable, and done before a weight is read.

(One exception: a scheme whose parameters follow from values, such as ``int8-outlier``, reads the tensors it is for.)
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..container.plan import Tensor
from ..dtypes import DTYPES
from ..errors import RecipeError, SchemeError, SourceError
from ..formats.sources import Source, SourceTensor, values
from ..hf.meta_model import Binding, Skeleton, Slot
from ..io.mapped import Path
from ..schemes import Scheme, make, parse
from ..schemes.plain import Plain
from .encoders import encode

DEFAULT = "int8"
DOCUMENT = "recipe.toml"  # the name under which a recipe file is kept
KEEP = "keep"  # in the place of a scheme: as the source stores it, or the model's dtype if it is not quantized

Values = tuple[np.ndarray, str]  # in the storage of a dtype, and that dtype


@dataclass(frozen=True)
class Recipe:
    """The scheme for the weights that are quantized, and exceptions by name; ``None`` stands for ``keep``.

    Linear weights (and GPT-2's Conv1D) get ``scheme``; heads, ties, embeddings, norms and whatever else
    transformers leaves alone stay as the source stores them, or in the model's dtype. A rule ``(pattern, scheme)``
    overrides both for the names that the regular expression is found in; the last one that matches wins.
    """

    scheme: Scheme | None
    rules: tuple[tuple[str, Scheme | None], ...] = ()
    text: str | None = None  # of the recipe file, which goes into the output

    @classmethod
    def of(
        cls, scheme: str, tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (), text: str | None = None
    ) -> Recipe:
        """From schemes as users write them.

        Raises:
            RecipeError: an unknown scheme, or a pattern that is no regular expression.
        """
        pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
        try:
            rules = tuple((re.compile(pattern).pattern, _parse(option)) for pattern, option in pairs)
            return cls(_parse(scheme), rules, text)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error.pattern!r}: {error}") from error
        except SchemeError as error:
            raise RecipeError(str(error)) from error

    def scheme_for(self, slot: Slot, origin: Scheme | None, names: Sequence[str]) -> Scheme:
        """The scheme of one tensor of a model, which the source stores in ``origin`` if it is quantized there.

        ``names`` are all that it goes by: a tied tensor has several, and a rule may find any of them.
        """
        chosen = self.scheme if slot.role in ("linear", "conv1d") else None
        return self._rule(names, chosen) or origin or make(slot.dtype)

    def scheme_alone(self, tensor: SourceTensor) -> Scheme:
        """The scheme of a tensor of no model: as it is stored, but for rules."""
        return self._rule([tensor.name], None) or tensor.stored

    def _rule(self, names: Sequence[str], otherwise: Scheme | None) -> Scheme | None:
        found = (s for pattern, s in reversed(self.rules) if any(re.search(pattern, name) for name in names))
        return next(found, otherwise)

    def lines(self) -> list[str]:
        """The recipe as the file keeps it: ``PATTERN=SCHEME``, the default first."""
        return [f"{pattern}={scheme.text if scheme else KEEP}" for pattern, scheme in (("*", self.scheme), *self.rules)]


def read_file(path: Path) -> tuple[str, str | None, list[tuple[str, str]]]:
    """Text, default scheme and rules of a recipe file: ``scheme = "nf4"`` and a table ``[tensors]`` of regex = scheme.

    Raises:
        RecipeError: it cannot be read, is not TOML, or something else is in it.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        values = tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"{name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: not TOML: {error}") from error
    scheme, tensors = values.pop("scheme", None), values.pop("tensors", {})
    texts = [scheme or "", *tensors.values()] if isinstance(tensors, dict) else [tensors]
    if values or not all(isinstance(text, str) for text in texts):
        raise RecipeError(f'{name}: a recipe is scheme = "..." and a table [tensors] of "regex" = "scheme"')
    return text, scheme, list(tensors.items())


def _parse(text: str) -> Scheme | None:
    return None if text == KEEP else parse(text)


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file to be: how it is stored, and where its values come from.

    ``read`` gives the values, not yet transposed unless ``source_transposed``; ``keep`` gives finished planes, where
    the source's are taken over as they are; an alias has neither. ``slot_dtype`` is what the model computes in, to
    which values are rounded before they are quantized, as transformers does. ``at_hand`` says that ``read`` costs
    nothing, because it gives what the source has: a view of its file, or an array.
    """

    tensor: Tensor
    sources: tuple[str, ...]
    origin: Scheme  # how the source stores it
    slot_dtype: str
    source_bytes: int
    read: Callable[[], Values] | None = None
    source_transposed: bool = False
    keep: Callable[[], Mapping[str, np.ndarray]] | None = None
    at_hand: bool = False

    @property
    def stored_bytes(self) -> int:
        """Bytes of its planes; none for an alias."""
        if self.tensor.alias_of is not None:
            return 0
        return sum(plane.nbytes for plane in self.tensor.scheme.planes(self.tensor.shape, self.tensor.dtype))

    @property
    def inexact(self) -> bool:
        """Whether decoded values may differ from the source's."""
        return self.read is not None and (self.tensor.scheme.lossy or self.tensor.scheme != self.origin)


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. Nothing has been read yet but headers."""

    source: Source
    skeleton: Skeleton | None  # None: tensors without a model
    recipe: Recipe
    tensors: tuple[Planned, ...]
    unused: tuple[str, ...]  # tensors of the source that the model has no place for
    states: tuple[tuple[int, ...] | None, ...] = ()  # of the source's files when they were opened

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
    bindings, unused = skeleton.bind(source)
    _check_rules(recipe, skeleton.slots, skeleton.architecture)
    owners: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for name in skeleton.slots:
        names.setdefault(skeleton.ties.get(name, name), []).append(name)
    tensors: dict[str, Planned] = {}
    for name, slot in skeleton.slots.items():
        root = skeleton.ties.get(name, name)
        if root in owners:
            _check_tie(source, bindings, name, owners[root])
            tensors[name] = _alias(tensors[owners[root]], name)
            continue
        binding = bindings.get(name) or _any_of_group(skeleton, bindings, root)
        if binding is None:
            continue  # a buffer that the constructor computes
        owners[root] = name
        tensors[name] = _planned(source, slot, binding, recipe, names[root])
    return Plan(source, skeleton, recipe, tuple(tensors.values()), tuple(unused))


def plan_alone(source: Source, recipe: Recipe) -> Plan:
    """Plan a source of which no model can be built: every tensor under its own name, in the source's order."""
    _check_rules(recipe, source.tensors, source.path)
    tensors: dict[str, Planned] = {}
    for name, found in source.tensors.items():
        if found.alias_of is not None:
            tensors[name] = _alias(tensors[found.alias_of], name)
            continue
        # As a Conv1D weight is: the stored tensor is the transpose of the one that has this name.
        shape, role = (found.shape[::-1], "conv1d") if found.transposed else (found.shape, "other")
        slot = Slot(name, shape, found.dtype, role)
        tensors[name] = _tensor(source, slot, found, recipe.scheme_alone(found))
    return Plan(source, None, recipe, tuple(tensors.values()), ())


def _check_rules(recipe: Recipe, names: Mapping[str, object], where: str) -> None:
    for pattern, _ in recipe.rules:
        if not any(re.search(pattern, name) for name in names):
            raise RecipeError(f"--tensor {pattern!r} matches no tensor of {where}")


def _planned(source: Source, slot: Slot, binding: Binding, recipe: Recipe, names: Sequence[str]) -> Planned:
    first = source.tensors[binding.sources[0]]
    if binding.read is None:
        return _tensor(source, slot, first, recipe.scheme_for(slot, first.scheme, names))
    # Joined or split by transformers: values, whatever the parts are stored in.
    scheme = _plain_if_integer(recipe.scheme_for(slot, None, names), slot)
    tensor = _target(slot, _fitted(scheme, slot, binding.read))
    parts = [source.tensors[key] for key in binding.sources]
    nbytes = parts[0].nbytes if len(parts) == 1 else _bytes(slot.shape, first.dtype)
    return Planned(tensor, binding.sources, first.stored, slot.dtype, nbytes, binding.read)


def _tensor(source: Source, slot: Slot, found: SourceTensor, scheme: Scheme) -> Planned:
    """A tensor that is one tensor of the source, taken over as it is where that is already in ``scheme``."""
    name = found.name
    scheme = _plain_if_integer(scheme, slot)
    if scheme.fallback and not _holds(scheme, slot):
        scheme = scheme.fallback
    if scheme == found.scheme:
        tensor = Tensor(slot.name, found.shape, found.dtype, scheme, transposed=found.transposed)
        return Planned(tensor, (name,), scheme, slot.dtype, found.nbytes, keep=lambda: source.planes(name))

    def read() -> Values:
        return values(source, name)

    scheme = _fitted(scheme, slot, read, found.transposed)
    return Planned(
        _target(slot, scheme), (name,), found.stored, slot.dtype, found.nbytes, read, found.transposed,
        at_hand=found.scheme is None,
    )  # fmt: skip


def _fitted(scheme: Scheme, slot: Slot, read: Callable[[], Values], transposed: bool = False) -> Scheme:
    """``scheme`` with what follows from the values filled in; they are only read for a scheme that asks."""
    if type(scheme).fitted is Scheme.fitted:
        return scheme
    try:
        array, dtype = read()
        array = rounded(array, dtype, slot.dtype)
        return scheme.fitted(array.T if transposed != (slot.role == "conv1d") else array, slot.dtype)
    except SchemeError as error:
        raise SchemeError(f"tensor {slot.name!r}: {error}") from error


def rounded(array: np.ndarray, dtype: str, to: str) -> np.ndarray:
    """Values of ``dtype`` rounded to the dtype ``to``: transformers rounds to the model's before it quantizes."""
    return array if dtype == to else encode(make(to), array, dtype)["values"]


def _plain_if_integer(scheme: Scheme, slot: Slot) -> Scheme:
    """A rule on names does not turn integers into floats."""
    return make(slot.dtype) if isinstance(scheme, Plain) and not DTYPES[slot.dtype].is_float else scheme


def _holds(scheme: Scheme, slot: Slot) -> bool:
    try:
        scheme.planes(slot.shape[::-1] if slot.role == "conv1d" else slot.shape, slot.dtype)
    except SchemeError:
        return False
    return True


def _target(slot: Slot, scheme: Scheme) -> Tensor:
    transposed = slot.role == "conv1d" and not isinstance(scheme, Plain)
    shape = slot.shape[::-1] if transposed else slot.shape
    dtype = scheme.name if isinstance(scheme, Plain) else slot.dtype
    try:
        scheme.planes(shape, dtype)
    except SchemeError as error:
        raise RecipeError(f"tensor {slot.name!r}: {error}") from error
    return Tensor(slot.name, shape, dtype, scheme, transposed=transposed)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=object)) * DTYPES[dtype].bits // 8


def _alias(target: Planned, name: str) -> Planned:
    t = target.tensor
    tensor = Tensor(name, t.shape, t.dtype, t.scheme, t.name, t.transposed)
    return Planned(tensor, target.sources, target.origin, target.slot_dtype, 0)


def _any_of_group(skeleton: Skeleton, bindings: Mapping[str, Binding], root: str) -> Binding | None:
    """A tie's values may stand in the checkpoint under any of its names."""
    return next((bindings[name] for name in bindings if skeleton.ties.get(name, name) == root), None)


def _check_tie(source: Source, bindings: Mapping[str, Binding], name: str, owner: str) -> None:
    """Tied tensors that a checkpoint holds twice must be the same, or one would be lost."""
    if name not in bindings or owner not in bindings:
        return
    a, b = bindings[name].sources[0], bindings[owner].sources[0]
    if a != b and not np.array_equal(values(source, a)[0], values(source, b)[0]):
        raise SourceError(
            f"{source.path}: the config ties {name!r} to {owner!r}, but the checkpoint holds two different tensors; "
            "set tie_word_embeddings to false in config.json to keep both"
        )
