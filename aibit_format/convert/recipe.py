"""Reads recipes: which scheme a user wants for which tensors."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import RecipeError, SchemeError
from ..formats.sources import SourceTensor
from ..hf.meta_model import ParameterSpec
from ..io.mapped import Path
from ..schemes import Scheme, make, parse

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
    Where no scheme was asked for, ``decided`` says which it is, once the source is known.
    """

    scheme: Scheme | None
    rules: tuple[tuple[str, Scheme | None], ...] = ()
    text: str | None = None  # of the recipe file, which goes into the output
    undecided: bool = False

    @classmethod
    def of(
        cls,
        scheme: str | None = None,
        tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        file: Path | None = None,
    ) -> Recipe:
        """Parse schemes as users write them, and a recipe file.

        Args:
            scheme: in the place of the file's.
            tensors: regular expression -> scheme; these rules come after the file's.
            file: TOML; see ``read_file``.

        Raises:
            RecipeError: an unknown scheme, a pattern that is no regular expression, or the file cannot be read.
        """
        text, its_scheme, its_rules = read_file(file) if file is not None else (None, None, [])
        scheme = scheme or its_scheme
        pairs = [*its_rules, *(tensors.items() if isinstance(tensors, Mapping) else tensors)]
        try:
            rules = tuple((re.compile(pattern).pattern, _parse(option)) for pattern, option in pairs)
            return cls(None if scheme is None else _parse(scheme), rules, text, scheme is None)
        except re.error as error:
            raise RecipeError(f"not a regular expression: {error.pattern!r}: {error}") from error
        except SchemeError as error:
            raise RecipeError(str(error)) from error

    def decided(self, quantized: bool) -> Recipe:
        """Return the recipe for a source: without a scheme, ``keep`` if some of it is quantized, else ``DEFAULT``."""
        if not self.undecided:
            return self
        return replace(self, scheme=None if quantized else parse(DEFAULT), undecided=False)

    def scheme_for(self, parameter: ParameterSpec, origin: Scheme | None, names: Sequence[str]) -> Scheme:
        """Return the scheme of one tensor of a model, which the source stores in ``origin`` if it is quantized there.

        ``names`` are all that it goes by: a tied tensor has several, and a rule may find any of them.
        """
        rule = self._rule(names)
        chosen = rule[1] if rule else self._default(parameter)
        return chosen or origin or make(parameter.dtype)

    def scheme_alone(self, tensor: SourceTensor, names: Sequence[str]) -> Scheme:
        """Return the scheme of a tensor that belongs to no model: as it is stored, but for rules on its ``names``."""
        rule = self._rule(names)
        return (rule[1] if rule else None) or tensor.stored

    def _rule(self, names: Sequence[str]) -> tuple[str, Scheme | None] | None:
        """Return the last rule whose expression is found in one of the names."""
        return next((rule for rule in reversed(self.rules) if any(re.search(rule[0], name) for name in names)), None)

    def _default(self, parameter: ParameterSpec) -> Scheme | None:
        """Return the scheme of weights that no rule names: its fallback where it cannot hold the shape."""
        if parameter.role not in ("linear", "conv1d") or self.scheme is None:
            return None
        fallback = self.scheme.fallback
        return self.scheme if fallback is None or _holds(self.scheme, parameter) else fallback

    def lines(self) -> list[str]:
        """Return the recipe as the file keeps it: ``PATTERN=SCHEME``, the default first."""
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


def _holds(scheme: Scheme, parameter: ParameterSpec) -> bool:
    try:
        scheme.planes(parameter.shape[::-1] if parameter.role == "conv1d" else parameter.shape, parameter.dtype)
    except SchemeError:
        return False
    return True


def _parse(text: str) -> Scheme | None:
    return None if text == KEEP else parse(text)
