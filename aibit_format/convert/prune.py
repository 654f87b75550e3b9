"""Leaves layers, channels, heads and experts out of a model: chooses by statistics, finds what fits a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..calibrate.calibrate import are_texts, statistics_of
from ..calibrate.statistics import Statistics, hessians
from ..errors import LoadError, RecipeError, SourceError
from ..file.progress import Progress
from ..formats.models import meta_model_of, missing_dtype
from ..formats.sources import Source, open_source
from ..hf.meta_model import MetaModel
from ..io.mapped import Path
from ..transform.prune.choose import Choice
from ..transform.prune.plan import Plan, Wanted
from ..transform.prune.source import Pruned
from ..transform.source import Transformed
from .recipe import Recipe

if TYPE_CHECKING:
    from .convert import Report

Calibration = Path | Sequence[Path] | Statistics | None
_READERS = r"(down_proj|o_proj)(\.weight)?$"  # weights that are fitted to fewer inputs
_ALONE = "chosen by weights alone, which may be worse than at random: --calibrate TEXT (or default) takes statistics"


def prune(
    source: Any,
    path: Path,
    wanted: str | Wanted | Plan,
    *,
    calibration: Calibration = None,
    scheme: str = "keep",
    tensors: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    overwrite: bool = False,
    on_progress: Progress | None = None,
    on_calibrate: Progress | None = None,
    architecture: str | None = None,
    tokenizer: Any = None,
    jobs: int | None = None,
    max_shard_size: int | str | None = None,
) -> Report:
    """Write the ``.aibit`` file ``path`` with less of a model: fewer layers, channels, heads or experts.

    The result is a plain model of the same class. Weights stay as they are stored, codes unchanged where whole blocks
    of them are kept; the report notes which were decoded and rounded again.

    Args:
        source, architecture, tokenizer, overwrite, jobs, max_shard_size: as for ``convert``.
        wanted: how much to keep: ``"layers=20"``, ``"channels=1024,refit"``, ``"size=80000000"``; see ``Wanted``. A
            ``Plan`` names what to keep by number.
        calibration: statistics of activations to choose by, or texts to take them from, as for ``convert``. Without
            them, weights alone are looked at.
        scheme, tensors: as for ``convert``, to quantize what is left without importance: ``convert`` with ``prune``
            also takes statistics of it.
        on_progress, on_calibrate: as for ``convert`` and ``calibrate``.

    Raises:
        RecipeError: the model cannot be pruned so, or a size cannot be met.
        SourceError, SchemeError, WriteError, LoadError: as for ``convert``.
    """
    from .convert import convert  # which uses ``pruned``

    how = Wanted.parse(wanted) if isinstance(wanted, str) else wanted
    opened = open_source(source, tokenizer)
    if opened.no_model:
        raise RecipeError(f"{opened.path}: no model that could be pruned: {opened.no_model}")
    dtype = missing_dtype(opened)
    model = meta_model_of(opened, architecture, dtype)
    recipe = Recipe.of(scheme, tensors)
    left, _ = pruned(opened, model, how, recipe, calibration, dtype, on_calibrate)
    return convert(
        left, path, scheme, tensors, overwrite=overwrite, on_progress=on_progress, architecture=architecture, jobs=jobs,
        max_shard_size=max_shard_size,
    )  # fmt: skip


def pruned(
    source: Source, model: MetaModel, wanted: Wanted | Plan, recipe: Recipe, calibration: Calibration,
    dtype: str | None = None, on_progress: Progress | None = None,
) -> tuple[Pruned, Calibration]:  # fmt: skip
    """Return what is left of a source, and what to quantize it by: texts, or what is left of statistics.

    Args:
        source, model: the model.
        wanted: how much, or what, to keep.
        recipe: by which the size of the file is found, if one is wanted.
        calibration: as for ``convert``.
        dtype: that ``config.json`` leaves to the weights.
        on_progress: as for ``calibrate``.

    Raises:
        RecipeError: as for ``prune``.
        SourceError: statistics are of another model.
    """
    base = Transformed(source, model, dtype)
    refit = wanted.refit
    statistics = None
    if calibration is not None:
        every = _READERS if refit and are_texts(calibration) else None
        statistics = statistics_of(source, model, calibration, model.architecture, on_progress, every)
    found = None if statistics is None else hessians(statistics)
    if refit and not found:
        raise RecipeError(
            "fitting matrices to what is left needs Hessians: give a text, or statistics of aibit calibrate --hessians "
            "(--calibrate FILE)"
        )
    choice = Choice(base, statistics)

    def left(how: Wanted | Plan) -> Pruned:
        plan = how if isinstance(how, Plan) else choice.plan(how)
        scored = choice.scored if isinstance(how, Wanted) and how.counts else "none"
        return Pruned(base, plan, found, scored, dtype)

    if isinstance(wanted, Wanted) and wanted.nbytes is not None:
        made = _of_size(left, choice, wanted, recipe)
    else:
        made = left(wanted)
    if statistics is None and isinstance(wanted, Wanted) and not wanted.dropped:
        made.notes = (_ALONE, *made.notes)
    if calibration is None or are_texts(calibration):
        return made, calibration
    return made, None if statistics is None else made.carried(statistics)


def _of_size(left: Callable[[Wanted], Pruned], choice: Choice, wanted: Wanted, recipe: Recipe) -> Pruned:
    """Return the model that keeps as many of a kind as fit into a size."""
    from .conversion import assign
    from .convert import file_bytes

    kind = wanted.by or choice.kinds()
    most, step = choice.most(kind)
    limit = int(wanted.nbytes or 0)
    counts = list(range(step, most, step))
    low, high, fitting, refused = 0, len(counts), None, ""
    smallest = 0
    while low < high:  # the size grows with the count
        middle = (low + high) // 2
        try:
            made = left(wanted.keeping(kind, counts[middle]))
            conversion = assign(made, made.model, recipe.decided(True))
        except (RecipeError, LoadError, SourceError) as error:
            refused = str(error)
            counts.pop(middle)
            high -= 1
            continue
        nbytes = file_bytes(conversion)
        smallest = nbytes if not smallest else min(smallest, nbytes)
        if nbytes <= limit:
            fitting, low = made, middle + 1
        else:
            high = middle
    if fitting is None:
        why = f"the least that was possible has {smallest:,}" if smallest else refused
        raise RecipeError(
            f"{choice.source.path}: a file of {limit:,} bytes cannot be met with fewer {kind}: {why}; cut another kind "
            "(by=KIND), or take a scheme of fewer bits"
        )
    return fitting
