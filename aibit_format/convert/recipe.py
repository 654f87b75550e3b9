"""Reads recipes, which say in which schemes to store which tensors."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..calibrate.statistics import Statistics
from ..errors import RecipeError, SchemeError
from ..formats.sources import SourceTensor
from ..hf.meta_model import MetaModel, ParameterSpec
from ..io.mapped import Path
from ..schemes import Scheme, make, parse
from ..schemes.base import swapped
from ..transform.method import Transformation
from ..transform.method import parse as parse_transformations
from . import int8_auto
from .gptq import Gptq
from .int8_auto import Choice, Int8Auto
from .presets import PRESETS, assignments

DEFAULT = "int8"
DOCUMENT = "recipe.toml"  # the document that keeps a recipe file in the output
KEEP = "keep"  # written instead of a scheme: as the source stores the tensor, or in the model's dtype if unquantized

Values = tuple[np.ndarray, str]  # an array in the storage of a dtype, and that dtype
Option = Scheme | Int8Auto  # what stands in a recipe for the scheme of a tensor


@dataclass(frozen=True)
class Recipe:
    """Hold the scheme for weights that are to be quantized, and exceptions by name; ``None`` stands for ``keep``.

    Weights of Linear layers (and GPT-2's Conv1D) get ``scheme``, and so do fused experts where it can hold them. Heads,
    tied tensors, embeddings, norms and all else that transformers does not quantize stay as the source stores them, or
    in the model's dtype. A rule ``(pattern, scheme)`` overrides both for tensors in whose names the regular expression
    is found; the last match wins. If the user gave no scheme, ``decided`` chooses it once the source is known.

    A preset stands for a scheme for each tensor (``planned``), once ``for_model`` has been told which model it is.
    Where a scheme that no rule names cannot hold a tensor, its fallback is taken.
    """

    scheme: Option | None
    rules: tuple[tuple[str, Option | None], ...] = ()
    text: str | None = None  # of the recipe file, to be kept in the output
    undecided: bool = False
    preset: str | None = None
    planned: Mapping[str, Scheme] = field(default_factory=dict)  # by the name of a tensor
    method: Gptq | None = None  # with which weights are rounded; else each value to the nearest
    transformations: tuple[Transformation, ...] = ()  # of the model, before anything is quantized

    @classmethod
    def of(
        cls,
        scheme: str | None = None,
        tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        file: Path | None = None,
        method: str | None = None,
        transform: str | Sequence[str] = (),
    ) -> Recipe:
        """Make a recipe from schemes as users write them, and from a recipe file.

        Args:
            scheme: replaces the file's. It may be a preset.
            tensors: regular expression -> scheme; these rules are added after the file's.
            file: TOML; see ``read_file``.
            method: replaces the file's; see ``Gptq.parse``.
            transform: replaces the file's transformations.

        Raises:
            RecipeError: a scheme, a method or a transformation is unknown, a pattern is no regular expression, or the
                file cannot be read.
        """
        found = FileOfRecipe() if file is None else read_file(file)
        scheme, method = scheme or found.scheme, method or found.method
        how = None if method is None else Gptq.parse(method)
        done = parse_transformations([transform] if isinstance(transform, str) else transform or found.transform)
        pairs = [*found.tensors, *(tensors.items() if isinstance(tensors, Mapping) else tensors)]
        try:
            rules = tuple((re.compile(pattern).pattern, _parse(option)) for pattern, option in pairs)
            if scheme in PRESETS:
                chosen = parse(f"gguf:{PRESETS[scheme].usual}")
                return cls(chosen, rules, found.text, preset=scheme, method=how, transformations=done)
            chosen = None if scheme is None else _parse(scheme)
            return cls(chosen, rules, found.text, scheme is None, method=how, transformations=done)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error.pattern!r}: {error}") from error
        except SchemeError as error:
            raise RecipeError(str(error)) from error

    def decided(self, quantized: bool) -> Recipe:
        """Return the recipe with a scheme, if none was given: ``keep`` for a ``quantized`` source, or ``DEFAULT``."""
        if not self.undecided:
            return self
        return replace(self, scheme=None if quantized else parse(DEFAULT), undecided=False)

    def told(self, statistics: Statistics | None) -> Recipe:
        """Return the recipe with the statistics that ``int8-auto`` chooses by.

        Raises:
            RecipeError: it needs some, and there are none.
        """

        def tell(option: Option | None) -> Option | None:
            return option.told(statistics) if isinstance(option, Int8Auto) else option

        rules = tuple((pattern, tell(option)) for pattern, option in self.rules)
        return replace(self, scheme=tell(self.scheme), rules=rules)

    def for_model(self, model: MetaModel, has_importance: bool) -> Recipe:
        """Return the recipe with what its preset, if it has one, plans for the tensors of a model."""
        if self.preset is None:
            return self
        return replace(self, planned=assignments(self.preset, model, has_importance))

    def scheme_for(self, parameter: ParameterSpec, origin: Scheme | None, names: Sequence[str]) -> Scheme:
        """Return the scheme for one tensor of a model.

        Args:
            parameter: the tensor.
            origin: the scheme in which the source stores it, if it is quantized there.
            names: all its names: a tied tensor has several, and a rule may match any of them.
        """
        chosen = self._option(parameter, names)
        return _scheme(chosen, names) or origin or make(parameter.dtype)

    def choice_for(self, parameter: ParameterSpec, names: Sequence[str]) -> Choice | None:
        """Return what ``int8-auto`` chooses for a tensor of a model; ``None`` if the tensor has another scheme."""
        chosen = self._option(parameter, names)
        return chosen.choice(names) if isinstance(chosen, Int8Auto) else None

    def scheme_alone(self, tensor: SourceTensor, names: Sequence[str]) -> Scheme:
        """Return the scheme for a tensor without a model: that of a rule for its ``names``, or that of the source."""
        rule = self._rule(names)
        return _scheme(rule[1] if rule else None, names) or tensor.stored

    def _option(self, parameter: ParameterSpec, names: Sequence[str]) -> Option | None:
        rule = self._rule(names)
        return rule[1] if rule else self._default(parameter)

    def _rule(self, names: Sequence[str]) -> tuple[str, Option | None] | None:
        """Return the last rule whose regular expression is found in one of the names."""
        return next((rule for rule in reversed(self.rules) if any(re.search(rule[0], name) for name in names)), None)

    def is_named(self, names: Sequence[str]) -> bool:
        """Tell whether a rule is about the tensor with these names."""
        return self._rule(names) is not None

    def replaced(self, parameter: ParameterSpec, names: Sequence[str]) -> Option | None:
        """Return the scheme that a tensor would have, if it could hold it; ``None`` if it can."""
        wanted = None if self._rule(names) else self._wanted(parameter)
        return wanted if wanted is not None and wanted != self._default(parameter) else None

    def _wanted(self, parameter: ParameterSpec) -> Option | None:
        """Return the scheme for a tensor that no rule names, whether or not it can hold the shape."""
        if self.preset is not None:
            return self.planned.get(parameter.name)
        return self.scheme if parameter.role in ("linear", "conv1d", "experts") else None

    def _default(self, parameter: ParameterSpec) -> Option | None:
        """Return the scheme for a tensor that no rule names: the wanted one, or the first fallback that can hold it.

        Where none can, stacks and tensors that have tried a fallback stay as they are. Others keep the scheme: that it
        cannot hold them is an error.
        """
        wanted = scheme = self._wanted(parameter)
        while scheme is not None and not _holds(scheme, parameter):
            scheme = scheme.fallback
        if scheme is None and wanted is not None and wanted.fallback is None and self.preset is None:
            return None if parameter.role == "experts" else wanted
        return scheme

    def lines(self) -> list[str]:
        """Return the recipe as a file's metadata keep it: lines ``PATTERN=SCHEME``, the default first."""
        usual = self.preset or (self.scheme.text if self.scheme else KEEP)
        return [f"*={usual}", *(f"{pattern}={scheme.text if scheme else KEEP}" for pattern, scheme in self.rules)]


@dataclass(frozen=True)
class FileOfRecipe:
    """Hold what a recipe file says, all of it optional, and its text."""

    text: str | None = None
    scheme: str | None = None
    tensors: tuple[tuple[str, str], ...] = ()
    method: str | None = None
    transform: tuple[str, ...] = ()


def read_file(path: Path) -> FileOfRecipe:
    """Read a recipe file: ``scheme``, ``method``, ``transform`` (a list) and a table ``[tensors]`` of regex = scheme.

    Raises:
        RecipeError: it cannot be read, is not TOML, or has other contents.
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
    scheme, method = values.pop("scheme", None), values.pop("method", None)
    transform, tensors = values.pop("transform", []), values.pop("tensors", {})
    texts = [scheme or "", method or "", *tensors.values()] if isinstance(tensors, dict) else [tensors]
    texts += transform if isinstance(transform, list) else [None]
    if values or not all(isinstance(text, str) for text in texts):
        raise RecipeError(
            f'{name}: a recipe is scheme = "...", method = "...", transform = ["..."] and a table [tensors] of '
            '"regex" = "scheme"; no more'
        )
    return FileOfRecipe(text, scheme, tuple(tensors.items()), method, tuple(transform))


def _scheme(option: Option | None, names: Sequence[str]) -> Scheme | None:
    """Return the scheme that an option of the recipe stands for, for a tensor with these names."""
    return option.scheme(option.choice(names).mode) if isinstance(option, Int8Auto) else option


def _holds(scheme: Option, parameter: ParameterSpec) -> bool:
    try:
        scheme.planes(swapped(parameter.shape) if parameter.transposed else parameter.shape, parameter.dtype)
    except SchemeError:
        return False
    return True


def _parse(text: str) -> Option | None:
    if text.partition(",")[0] == int8_auto.NAME:
        return Int8Auto.parse(text)
    return None if text == KEEP else parse(text)
