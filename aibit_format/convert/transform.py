"""Transforms a model before it is quantized, as a recipe says, with statistics of activations that fit each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..calibrate.calibrate import are_texts, statistics_of
from ..calibrate.statistics import Statistics
from ..file.progress import Progress
from ..formats.sources import Source
from ..hf.meta_model import MetaModel
from ..io.mapped import Path
from ..native.cores import usable_cores
from ..transform.method import Context, Quantize
from ..transform.source import Transformed
from .conversion import rounded
from .encoders import encode
from .recipe import Recipe


def transformed(
    source: Source, model: MetaModel, recipe: Recipe, calibration: Path | Sequence[Path] | Statistics | None,
    dtype: str | None = None, on_progress: Progress | None = None, jobs: int | None = None,
) -> tuple[Transformed, Statistics | None]:  # fmt: skip
    """Apply a recipe's transformations to a source.

    Statistics that are given are those of the source as it is, and are carried through. From a text they are taken of
    the model as it is when they are needed first: after a rotation.

    Args:
        source, model: the model.
        recipe: its transformations, and the schemes that they go by.
        calibration: as for ``convert``.
        dtype: that ``config.json`` leaves to the weights.
        on_progress: as for ``calibrate``, and for searches.
        jobs: threads of a search; the result does not depend on it.

    Returns the source, and the statistics of what goes into its layers, if any were given.

    Raises:
        SourceError, RecipeError: as for ``calibrate`` and ``Transformation.apply``.
    """
    made = Transformed(source, model, dtype)
    statistics = None

    def take(source: Source, model: MetaModel) -> Statistics | None:
        if calibration is None:
            return None
        every = None if recipe.method is None else ""  # Hessians are taken of all weights, or none
        return statistics_of(source, model, calibration, model.architecture, on_progress, every)

    if calibration is not None and not are_texts(calibration):
        statistics = take(source, model)
    for each in recipe.transformations:
        if statistics is None and each.method.needs_statistics:
            statistics = take(made, made.model)
        told = recipe if statistics is None else recipe.told(statistics)
        context = Context(_quantize(told, made.model), jobs or usable_cores(), on_progress)
        made, statistics = each.apply(made, statistics, context)
    return made, statistics or take(made, made.model)


def _quantize(recipe: Recipe, model: MetaModel) -> Quantize:
    """Return a function that encodes values in the scheme of a tensor, and decodes them."""
    planned = recipe.for_model(model, has_importance=True)

    def quantize(name: str, values: np.ndarray, importance: np.ndarray) -> np.ndarray | None:
        parameter = model.parameters[name]
        scheme = planned.scheme_for(parameter, None, [name])
        if not scheme.lossy:
            return None
        if importance.ndim == 2:  # for each row, as encoders take it
            importance = np.repeat(importance, values.shape[-2], 0)
        dtype = "f32" if parameter.dtype == "f64" else parameter.dtype
        array = rounded(values, "f32", dtype)
        scheme = scheme.fitted(array, dtype)
        return scheme.decode(encode(scheme, array, dtype, importance), values.shape, dtype)

    return quantize
