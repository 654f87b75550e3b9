"""Reads recipes, which say in which schemes to store which tensors."""

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
from ..schemes.base import swapped

DEFAULT = "int8"
DOCUMENT = "recipe.toml"  # the document that keeps a recipe file in the output
KEEP = "keep"  # written instead of a scheme: as the source stores the tensor, or in the model's dtype if unquantized

Values = tuple[np.ndarray, str]  # an array in the storage of a dtype, and that dtype


@dataclass(frozen=True)
class Recipe:
    """Hold the scheme for weights that are to be quantized, and exceptions by name; ``None`` stands for ``keep``.

    Weights of Linear layers (and GPT-2's Conv1D) get ``scheme``, and so do fused experts where it can hold them. Heads,
    tied tensors, embeddings, norms and all else that transformers does not quantize stay as the source stores them, or
    in the model's dtype. A rule ``(pattern, scheme)`` overrides both for tensors in whose names the regular expression
    is found; the last match wins. If the user gave no scheme, ``decided`` chooses it once the source is known.
    """

    scheme: Scheme | None
    rules: tuple[tuple[str, Scheme | None], ...] = ()
    text: str | None = None  # of the recipe file, to be kept in the output
    undecided: bool = False

    @classmethod
    def of(
        cls,
        scheme: str | None = None,
        tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        file: Path | None = None,
    ) -> Recipe:
        """Make a recipe from schemes as users write them, and from a recipe file.

        Args:
            scheme: replaces the file's.
            tensors: regular expression -> scheme; these rules are added after the file's.
            file: TOML; see ``read_file``.

        Raises:
            RecipeError: a scheme is unknown, a pattern is not a regular expression, or the file cannot be read.
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
        """Return the recipe with a scheme, if none was given: ``keep`` for a ``quantized`` source, or ``DEFAULT``."""
        if not self.undecided:
            return self
        return replace(self, scheme=None if quantized else parse(DEFAULT), undecided=False)

    def scheme_for(self, parameter: ParameterSpec, origin: Scheme | None, names: Sequence[str]) -> Scheme:
        """Return the scheme for one tensor of a model.

        Args:
            parameter: the tensor.
            origin: the scheme in which the source stores it, if it is quantized there.
            names: all its names: a tied tensor has several, and a rule may match any of them.
        """
        rule = self._rule(names)
        chosen = rule[1] if rule else self._default(parameter)
        return chosen or origin or make(parameter.dtype)

    def scheme_alone(self, tensor: SourceTensor, names: Sequence[str]) -> Scheme:
        """Return the scheme for a tensor without a model: that of a rule for its ``names``, or that of the source."""
        rule = self._rule(names)
        return (rule[1] if rule else None) or tensor.stored

    def _rule(self, names: Sequence[str]) -> tuple[str, Scheme | None] | None:
        """Return the last rule whose regular expression is found in one of the names."""
        return next((rule for rule in reversed(self.rules) if any(re.search(rule[0], name) for name in names)), None)

    def _default(self, parameter: ParameterSpec) -> Scheme | None:
        """Return the scheme for a tensor that no rule names; the fallback, if the recipe's cannot hold the shape."""
        if parameter.role not in ("linear", "conv1d", "experts") or self.scheme is None:
            return None
        fallback, stacked = self.scheme.fallback, parameter.role == "experts"
        if (fallback is None and not stacked) or _holds(self.scheme, parameter):
            return self.scheme
        return fallback if not stacked or (fallback and _holds(fallback, parameter)) else None

    def lines(self) -> list[str]:
        """Return the recipe as a file's metadata keep it: lines ``PATTERN=SCHEME``, the default first."""
        return [f"{pattern}={scheme.text if scheme else KEEP}" for pattern, scheme in (("*", self.scheme), *self.rules)]


def read_file(path: Path) -> tuple[str, str | None, list[tuple[str, str]]]:
    """Read a recipe file: ``scheme = "nf4"`` and a table ``[tensors]`` of regex = scheme, both optional.

    Returns its text, its scheme or ``None``, and its rules.

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
    scheme, tensors = values.pop("scheme", None), values.pop("tensors", {})
    texts = [scheme or "", *tensors.values()] if isinstance(tensors, dict) else [tensors]
    if values or not all(isinstance(text, str) for text in texts):
        raise RecipeError(f'{name}: a recipe is scheme = "..." and a table [tensors] of "regex" = "scheme"; no more')
    return text, scheme, list(tensors.items())


def _holds(scheme: Scheme, parameter: ParameterSpec) -> bool:
    try:
        scheme.planes(swapped(parameter.shape) if parameter.transposed else parameter.shape, parameter.dtype)
    except SchemeError:
        return False
    return True


def _parse(text: str) -> Scheme | None:
    return None if text == KEEP else parse(text)
