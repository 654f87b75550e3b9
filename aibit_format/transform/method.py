"""Names what can be done to a model before it is quantized, and reads it as users write it: ``smooth,alpha=0.5``.

Each method has one line in ``METHODS``. It takes a source, with the statistics of its activations, and returns both as
they are afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibrate.statistics import Statistics
from ..errors import RecipeError
from ..file.progress import Progress

if TYPE_CHECKING:
    from .source import Transformed

# Returns a tensor's values as they are read from a file that stores them, f32 of the same shape, for its name, values
# f32 [..., rows, columns] and an importance of columns; ``None`` if they are stored as they are.
Quantize = Callable[[str, np.ndarray, np.ndarray], np.ndarray | None]
Done = tuple["Transformed", Statistics | None]


@dataclass(frozen=True)
class Context:
    """Say what a method may ask for: what quantizing does to a tensor, how many threads there are, who listens."""

    quantize: Quantize
    jobs: int = 1
    on_progress: Progress | None = None


@dataclass(frozen=True)
class Parameter:
    """Describe a parameter of a method: its type, its value where none is given, and its bounds."""

    kind: type[int] | type[float]
    default: int | float
    least: float
    most: float


@dataclass(frozen=True)
class Method:
    """Describe a method: the function ``"module:function"``, and what it needs."""

    function: str
    needs_statistics: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


# In the order in which they are done, whatever order they are written in.
METHODS: dict[str, Method] = {
    "rotate": Method("rotate:rotate", False, {"seed": Parameter(int, 0, 0, 2**63 - 1)}),
    "smooth": Method("smooth:smooth", True, {"alpha": Parameter(float, 0.5, 0, 1)}),
    "awq": Method("awq:awq", True),
}


@dataclass(frozen=True)
class Transformation:
    """Hold a method and the values of its parameters."""

    name: str
    values: tuple[tuple[str, int | float], ...] = ()

    @property
    def method(self) -> Method:
        """Return the method."""
        return METHODS[self.name]

    @property
    def text(self) -> str:
        """Return it as users write it, with all parameters."""
        return ",".join([self.name, *(f"{key}={value}" for key, value in self.values)])

    def apply(self, source: Transformed, statistics: Statistics | None, context: Context) -> Done:
        """Apply it.

        Raises:
            RecipeError: the model cannot be transformed so; or there are no statistics, and it needs some.
        """
        if self.method.needs_statistics and statistics is None:
            raise RecipeError(
                f"{self.name} goes by statistics of activations, and there are none: give a text or a file of "
                "aibit calibrate (--calibrate FILE; --calibrate default for the text that comes with this program)"
            )
        module, _, function = self.method.function.partition(":")
        done: Any = vars(import_module(f".{module}", __package__))[function]
        return done(source, statistics, context, self.text, **dict(self.values))


def parse(texts: Sequence[str]) -> tuple[Transformation, ...]:
    """Parse transformations, and return them in the order in which they are done.

    Raises:
        RecipeError: one is unknown, is named twice, or has a parameter that it does not take.
    """
    found = {}
    for text in texts:
        name, *options = text.split(",")
        if name not in METHODS:
            raise RecipeError(f"unknown transformation {name!r}; known: {', '.join(METHODS)}")
        if name in found:
            raise RecipeError(f"transformation {name!r} is named twice")
        found[name] = _with_options(name, options)
    return tuple(found[name] for name in METHODS if name in found)


def _with_options(name: str, options: Sequence[str]) -> Transformation:
    parameters = METHODS[name].parameters
    values = {key: parameter.default for key, parameter in parameters.items()}
    for option in options:
        key, _, text = option.partition("=")
        if key not in parameters:
            known = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
            raise RecipeError(f"{name}: unknown parameter {key!r}; {known}")
        parameter = parameters[key]
        try:
            value = parameter.kind(text)
        except ValueError:
            value = math.nan
        if not parameter.least <= value <= parameter.most:
            raise RecipeError(f"{name}: {key} {text!r}: a number from {parameter.least} to {parameter.most} is needed")
        values[key] = value
    return Transformation(name, tuple(values.items()))
