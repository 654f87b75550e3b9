"""Provides what is kept of a model's tensors, by the names that they have in the smaller model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...calibrate.hessians import Hessians
from ...calibrate.statistics import Statistics
from ...container import pruning
from ...container.metadata import Value
from ...dtypes import storage_of
from ...errors import RecipeError, SchemeError
from ...formats.bind import listed
from ...formats.models import config_of, meta_model_of
from ...formats.sources import SourceFile, SourceTensor, values
from ...hf.meta_model import MetaModel
from ...schemes import Scheme
from ...schemes.base import swapped
from ...schemes.select import COLUMNS, MATRICES, ROWS, Kept, Selection, select, selected_values, shape_of
from ..changes import from_float64, to_float64
from ..families import FAMILIES
from ..source import Transformed
from .carry import carried
from .config import pruned_config
from .hidden import hidden_axes
from .layers import check_same, layer_list, layer_of
from .plan import Plan
from .refit import refitted
from .widths import Layer, Selected, layers_of


@dataclass(frozen=True)
class _Cut:
    """Say what is kept of a tensor: in the model's shape and in that of the source, and how its planes are cut."""

    model: Kept
    stored: Kept
    selection: Selection | None  # None: it is decoded
    hessian: Hessians | None  # by which it is fitted, f32 [matrices, K, K]
    gain: float | None = None  # by which a norm multiplies more than it did


class Pruned:
    """Provide the tensors of a model from which layers, channels, heads or experts are left out.

    Tensors that are kept whole are those of the source. Others keep their codes if whole blocks of their scheme are
    kept; else they are decoded, and ``SourceTensor.intended`` says in which scheme they were.

    Args:
        source: the model.
        plan: what is kept of it.
        hessians: of inputs, f32 [matrices, K, K], by the names of weights, if the plan refits.
        scored: by what the choice was made, for the file's metadata.
        dtype: that ``config.json`` leaves to the weights.

    Raises:
        RecipeError: the model cannot be pruned so.
        LoadError: its configuration class refuses the widths.
    """

    no_model: str | None = None

    def __init__(
        self, source: Transformed, plan: Plan, hessians: Mapping[str, Hessians] | None = None, scored: str = "",
        dtype: str | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.path, self.architecture = source.kind, source.path, source.architecture
        self._source, self._plan = source, plan
        old, kept = source.model, _layers(source.model, plan)
        self.documents: dict[str, bytes] = dict(source.documents)
        self.documents["config.json"] = pruned_config(old, config_of(source), plan, kept)
        said, self.documents[pruning.DOCUMENT] = pruning.described(
            source.metadata, source.documents.get(pruning.DOCUMENT), plan.how, scored, plan.rows()
        )
        self.metadata: Mapping[str, Value] = {**source.metadata, **said}
        self._names = _renamed(old, layer_list(old)[0], kept)
        selected = _selected(old, plan, kept) if plan.widths else {}
        if plan.hidden is not None:
            for name, axis in hidden_axes(source, len(plan.hidden)).items():
                selected[name] = {**selected.get(name, {}), axis: plan.hidden}
        readers = _readers(old, plan, kept) if plan.refit else set()
        self._cuts: dict[str, _Cut] = {}
        self.tensors: dict[str, SourceTensor] = {}
        for new, name in self._names.items():
            if name in source.tensors:
                found = hessians.get(name) if hessians is not None and name in readers else None
                self.tensors[new] = self._tensor(new, source.tensors[name], selected.get(name), found)
        for name, tensor in source.tensors.items():
            if name not in old.parameters:
                self.tensors[name], self._names[name] = tensor, name
        self.model: MetaModel = meta_model_of(self, self.architecture, dtype)
        _check_shapes(self.model, self.tensors)
        check_same(old, self.model, kept, bool(plan.widths) or plan.hidden is not None)
        self.notes = self._notes()

    @property
    def files(self) -> list[SourceFile]:
        return self._source.files

    def _tensor(
        self, new: str, tensor: SourceTensor, wanted: Mapping[int, np.ndarray] | None, hessian: Hessians | None
    ) -> SourceTensor:
        if wanted is None:
            return replace(tensor, name=new)
        stored = {_turned(axis): index for axis, index in wanted.items()} if tensor.transposed else dict(wanted)
        shape = shape_of(tensor.shape, stored)
        gain = self._plan.gains.get(self._names[new])
        computed = hessian is not None or gain is not None
        selection = None if computed else select(tensor.stored, tensor.shape, tensor.dtype, stored)
        self._cuts[new] = _Cut(wanted, stored, selection, hessian, gain)
        if selection is not None:
            scheme = None if tensor.scheme is None else selection.scheme
            return replace(tensor, name=new, shape=shape, scheme=scheme, offset=None, computed=True)
        turned = swapped(shape) if tensor.transposed else shape
        spec = self._source.model.parameters[self._names[new]]
        made = SourceTensor(new, turned, spec.dtype, tensor.file, computed=True)
        return replace(made, intended=_holding(tensor.scheme, shape, tensor.dtype))

    def planes(self, name: str) -> Mapping[str, np.ndarray]:
        old, cut = self._names[name], self._cuts.get(name)
        if cut is None:
            return self._source.planes(old)
        if cut.selection is not None:
            return cut.selection.planes(self._source.planes(old))
        array, dtype = values(self._source, old)
        if self._source.tensors[old].transposed:
            array = np.swapaxes(array, -1, -2)
        to = self.tensors[name].dtype
        if cut.hessian is not None:
            return {"values": _fitted(array, dtype, cut, to, old)}
        left = selected_values(array, cut.model)
        if cut.gain is not None:
            beside = FAMILIES[self._source.model.model_type].gain
            return {"values": from_float64((to_float64(left, dtype) + beside) * cut.gain - beside, to)}
        return {"values": left if dtype == to else from_float64(to_float64(left, dtype), to)}

    def carried(self, statistics: Statistics) -> Statistics:
        """Return what is left of statistics of the whole model."""
        kept = {name: cut.model for name, cut in self._cuts.items()}
        return carried(statistics, self._names, kept, self.model.ties)

    def _notes(self) -> tuple[str, ...]:
        decoded = [
            name for name, cut in self._cuts.items()
            if cut.selection is None and cut.hessian is None and self.tensors[name].intended is not None
        ]  # fmt: skip
        if not decoded:
            return ()
        more = f" and {len(decoded) - 1} more" if len(decoded) > 1 else ""
        return (f"decoded and rounded again, as what is kept is not whole blocks of codes: {decoded[0]}{more}",)


def _layers(model: MetaModel, plan: Plan) -> list[int]:
    count = layer_list(model)[1]
    return list(range(count)) if plan.layers is None else plan.layers.tolist()


def _renamed(model: MetaModel, layers: str, kept: Sequence[int]) -> dict[str, str]:
    """Map the names of the smaller model to those of the source."""
    names, place = {}, {number: i for i, number in enumerate(kept)}
    for name in model.parameters:
        found = layer_of(name, layers)
        if found is None:
            names[name] = name
        elif found[0] in place:
            names[f"{layers}.{place[found[0]]}.{found[1]}"] = name
    return names


def _selected(model: MetaModel, plan: Plan, kept: Sequence[int]) -> Selected:
    """Return what is kept of each tensor of which not all is."""
    cuts: dict[str, Callable[[Layer, np.ndarray], Selected]] = {
        "channels": Layer.channels, "heads": Layer.groups_kept, "experts": Layer.experts_kept
    }  # fmt: skip
    layers, found = layers_of(model), {}
    for kind, numbers in plan.widths.items():
        for number in kept:
            if number in numbers:
                for name, axes in cuts[kind](layers[number], numbers[number]).items():
                    found[name] = {**found.get(name, {}), **axes}
    return found


def _readers(model: MetaModel, plan: Plan, kept: Sequence[int]) -> set[str]:
    """Return the names of the weights that read channels of which some are left out."""
    layers = layers_of(model)
    down = {layers[number].down for number in kept if number in plan.channels}
    return down | {layers[number].output for number in kept if number in plan.heads}


def _turned(axis: int) -> int:
    return {MATRICES: MATRICES, ROWS: COLUMNS, COLUMNS: ROWS}[axis]


def _holding(scheme: Scheme | None, shape: tuple[int, ...], dtype: str) -> Scheme | None:
    """Return a scheme, or the first of its fallbacks, that can hold a shape."""
    while scheme is not None:
        try:
            scheme.planes(shape, dtype)
        except SchemeError:
            scheme = scheme.fallback
        else:
            return scheme
    return None


def _fitted(array: np.ndarray, dtype: str, cut: _Cut, to: str, name: str) -> np.ndarray:
    """Return the values of a weight, or of each matrix of a stack, that is fitted to the columns that are kept."""
    stack = array if array.ndim > 2 else array[None]
    which = cut.model.get(MATRICES, np.arange(len(stack)))
    columns = cut.model[COLUMNS]
    made = np.empty((len(which), stack.shape[1], columns.shape[-1]), storage_of(to))
    hessian: Any = cut.hessian
    for place, matrix in enumerate(which.tolist()):
        kept = columns if columns.ndim == 1 else columns[place]
        try:
            found = refitted(to_float64(stack[matrix], dtype), hessian[matrix], kept)
        except RecipeError as error:
            raise RecipeError(f"tensor {name!r}: {error}") from error
        made[place] = from_float64(found, to)
    return made if array.ndim > 2 else made[0]


def _check_shapes(model: MetaModel, tensors: Mapping[str, SourceTensor]) -> None:
    """Check that a config describes the tensors that are left; raises RecipeError if it says others."""
    wanted = [name for name, spec in model.parameters.items() if name not in model.ties and spec.role != "buffer"]
    if lacking := [name for name in wanted if name not in tensors]:
        raise RecipeError(
            f"{model.architecture} cannot be pruned so: its config would have {listed(lacking)}, which is not left"
        )
    for name, spec in model.parameters.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        shape = swapped(tensor.shape) if tensor.transposed else tensor.shape
        if shape != spec.shape:
            raise RecipeError(
                f"{model.architecture} cannot be pruned so: tensor {name!r} would have shape {list(shape)}, and its "
                f"config has no words for that: it says {list(spec.shape)}"
            )
