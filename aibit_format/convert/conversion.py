"""Decides how every tensor of a source will be stored, before any weights are read; ``convert.run`` then does that.

The one exception is a scheme whose parameters depend on values, such as ``int8-outlier``: its tensors are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibrate.hessians import Hessians
from ..calibrate.statistics import Statistics
from ..container.documents import parse_json
from ..container.metadata import Value
from ..container.names import bad_tensor_name
from ..container.plan import Tensor
from ..dtypes import DTYPES
from ..errors import RecipeError, SchemeError, SourceError
from ..formats.bind import Binding, bind, binding_of, listed
from ..formats.sources import Source, SourceTensor, values
from ..hf.meta_model import MetaModel, ParameterSpec, Role
from ..schemes import Scheme, make
from ..schemes.base import check_importance, matrix, swapped
from ..schemes.plain import Plain
from . import input_ranges
from .encoders import encode
from .gptq import Encoder, Factors, quantizer_of
from .int8_auto import Choice
from .recipe import Option, Recipe

Values = tuple[np.ndarray, str]  # an array in the storage of a dtype, and that dtype


@dataclass(frozen=True, slots=True)
class Assignment:
    """Describe a tensor of the file to write: how it is stored, and where its values come from.

    ``read`` returns the values, in the model's shape or, if ``source_transposed``, transposed. ``keep`` returns planes
    of the source that are kept unchanged. An alias has neither. ``model_dtype`` is the dtype in which the model
    computes; values are rounded to it before they are quantized, as transformers does. ``at_hand`` says that ``read``
    costs nothing, as it returns a view of the source's file or an existing array. ``role`` is what the tensor is to its
    model. ``choice`` says why it has its scheme, if ``int8-auto`` chose it; ``replaced`` is the scheme that the recipe
    would have for it, if it could hold the tensor. ``importance`` is that of the columns, f32 [columns], or of those of
    each matrix of a stack, f32 [matrices, columns]. ``method`` encodes it, if the recipe has one; where that cannot be
    used, ``fallback`` says why not. ``uncalibrated`` says why a tensor has another scheme than one that stores how
    inputs are quantized; see ``input_ranges``.
    """

    tensor: Tensor
    sources: tuple[str, ...]
    origin: Scheme  # how the source stores it
    model_dtype: str
    source_bytes: int
    read: Callable[[], Values] | None = None
    source_transposed: bool = False
    keep: Callable[[], Mapping[str, np.ndarray]] | None = None
    at_hand: bool = False
    role: Role = "other"
    choice: Choice | None = None
    replaced: Option | None = None
    importance: np.ndarray | None = None
    method: Encoder | None = None
    fallback: str | None = None
    uncalibrated: str = ""

    @property
    def stored_bytes(self) -> int:
        """Return the number of bytes of its planes; zero for an alias."""
        return self.tensor.nbytes

    @property
    def inexact(self) -> bool:
        """Tell whether decoded values may differ from the source's."""
        return self.read is not None and (self.tensor.scheme.lossy or self.tensor.scheme != self.origin)

    def importance_of(self, rows: range | None = None) -> np.ndarray | None:
        """Return the importance of some rows of the tensor seen as a matrix, as ``Scheme.encode_weighted`` takes it."""
        if self.importance is None or self.importance.ndim == 1:
            return self.importance
        count = matrix(self.tensor.shape)[0]
        each = count // len(self.importance)  # rows of a matrix
        return self.importance[np.arange(count)[slice(None) if rows is None else slice(rows.start, rows.stop)] // each]


@dataclass(frozen=True)
class Conversion:
    """Describe a conversion before it is done. Only headers of the source have been read."""

    source: Source
    about: Mapping[str, Value]  # metadata of the output that describe the model
    recipe: Recipe
    tensors: tuple[Assignment, ...]
    unused: tuple[str, ...]  # tensors of the source that are left out, because the model does not use them
    states: tuple[tuple[int, ...] | None, ...] = ()  # of the source's files when they were opened
    dtype: str | None = None  # for config.json, which leaves it to the weights
    ignored: tuple[str, ...] = ()  # keys of config.json that reach no configuration class
    statistics: Statistics | None = None  # of activations
    notes: tuple[str, ...] = ()  # what users should know of how the model was transformed

    def __post_init__(self) -> None:
        for assignment in self.tensors:
            if reason := bad_tensor_name(assignment.tensor.name):
                raise SourceError(
                    f"{self.source.path}: tensor {assignment.tensor.name!r}: {reason}; a file holds names of 1 to "
                    "255 printable ASCII characters without spaces, quotes and backslashes: rename it in the source"
                )

    @property
    def original_bytes(self) -> int:
        """Return the number of bytes of the weights in the source."""
        return sum(each.source_bytes for each in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Return the number of bytes of all planes."""
        return sum(each.stored_bytes for each in self.tensors)

    @property
    def parameters(self) -> int:
        """Count the elements of all tensors except aliases."""
        return sum(int(np.prod(p.tensor.shape, dtype=object)) for p in self.tensors if p.tensor.alias_of is None)


def assign(
    source: Source,
    model: MetaModel,
    recipe: Recipe,
    *,
    partial: bool = False,
    importance: Mapping[str, np.ndarray] | None = None,
    hessians: Mapping[str, Hessians] | None = None,
    statistics: Statistics | None = None,
) -> Conversion:
    """Assign a scheme and source tensors to every tensor of the model.

    Args:
        source: the checkpoint.
        model: what transformers makes of its config.
        recipe: which tensors get which scheme.
        partial: leave out tensors that the model does not use. Without it they are an error, unless the model is known
            to compute them itself.
        importance: as for ``convert``.
        hessians: of inputs of weights, by the model's names of tensors, for the recipe's method.
        statistics: of activations, for schemes that store how inputs are quantized.

    Raises:
        SourceError: the checkpoint does not match the model.
        RecipeError: a rule matches no tensor, or assigns a scheme to a tensor that it cannot hold; an importance is
            not one of a tensor of this model; or a scheme needs statistics, and there are none.
    """
    recipe = recipe.for_model(model, bool(importance))
    bindings, unused = bind(model, source)
    if unused and not partial:
        raise SourceError(
            f"{source.path}: {model.architecture} has no place for {listed(unused)}, which would be lost; name another "
            f"class that has, or {model.architecture} to leave them out (--architecture CLASS)"
        )
    _check_rules(recipe, model.parameters, model.architecture)
    owners: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for name in model.parameters:
        names.setdefault(model.ties.get(name, name), []).append(name)
    tensors: dict[str, Assignment] = {}
    for name, parameter in model.parameters.items():
        root = model.ties.get(name, name)
        if root in owners and not _apart(source, bindings, name, owners[root]):
            tensors[name] = _alias(tensors[owners[root]], name)
            continue
        binding = binding_of(model, bindings, name)
        if binding is None:
            continue  # a buffer that the constructor computes
        owners.setdefault(root, name)
        found = _assigned(source, parameter, binding, recipe, names[root])
        if found.read is not None:
            wanted, choice = recipe.replaced(parameter, names[root]), recipe.choice_for(parameter, names[root])
            found = _calibrated(
                replace(found, replaced=wanted, choice=choice), statistics, names[root], recipe.is_named(names[root])
            )
        tensors[name] = found
    for name, numbers in (importance or {}).items():
        if name not in model.parameters:
            raise RecipeError(f"an importance of {name!r}, which is no tensor of {model.architecture}")
        owner = owners.get(model.ties.get(name, name), name)
        if owner in tensors:
            tensors[owner] = _weighted(tensors[owner], numbers)
    if recipe.method is not None:
        held = {owners.get(model.ties.get(name, name), name): found for name, found in (hessians or {}).items()}
        factors = Factors(recipe.method)
        tensors = {name: _rounded_by(factors, each, held.get(name)) for name, each in tensors.items()}
        if all(each.method is None for each in tensors.values()):
            why = next((each.fallback for each in tensors.values() if each.fallback), "nothing is quantized")
            raise RecipeError(f"method {recipe.method.text}: there is no tensor that it could be used for: {why}")
    about = {"model.architecture": model.architecture, "model.type": model.model_type, "model.dtype": model.dtype}
    return Conversion(source, about, recipe, tuple(tensors.values()), tuple(unused))


def assign_alone(source: Source, recipe: Recipe, about: Mapping[str, Value] | None = None) -> Conversion:
    """Assign a scheme to every tensor of a source, keeping names and order.

    Args:
        source: tensors without a model, or those of a model that already have its names, order and dtypes.
        recipe: only its rules are used; nothing says to which weights its scheme would apply.
        about: metadata that describe the model; by default, the reason why there is none.

    Raises:
        RecipeError: as for ``assign``.
    """
    _check_rules(recipe, source.tensors, source.path)
    names: dict[str, list[str]] = {}
    for name, found in source.tensors.items():
        names.setdefault(found.alias_of or name, []).append(name)
    tensors: dict[str, Assignment] = {}
    for name, found in source.tensors.items():
        if found.alias_of is not None:
            tensors[name] = _alias(tensors[found.alias_of], name)
            continue
        # Like the weight of a Conv1D, it is stored as the transpose of the tensor that has this name.
        shape = swapped(found.shape) if found.transposed else found.shape
        parameter = ParameterSpec(name, shape, found.dtype, "other", found.transposed)
        assigned = _tensor(source, parameter, found, recipe.scheme_alone(found, names[name]))
        tensors[name] = _calibrated(assigned, None, names[name], True)
    if about is None:
        about = {"model.missing": source.no_model}
    return Conversion(source, about, recipe, tuple(tensors.values()), ())


def _check_rules(recipe: Recipe, names: Mapping[str, object], where: str) -> None:
    for pattern, _ in recipe.rules:
        if not any(re.search(pattern, name) for name in names):
            raise RecipeError(f"--tensor {pattern!r} matches no tensor of {where}")


def _assigned(
    source: Source, parameter: ParameterSpec, binding: Binding, recipe: Recipe, names: Sequence[str]
) -> Assignment:
    if not binding.sources:
        plain = make(parameter.dtype)
        return Assignment(_target(parameter, plain), (), plain, parameter.dtype, 0, binding.read, role=parameter.role)
    first = source.tensors[binding.sources[0]]
    if binding.read is None:
        return _tensor(source, parameter, first, recipe.scheme_for(parameter, first.scheme or first.intended, names))
    if binding.joined is not None:
        found, planes = binding.joined
        if found.shape == parameter.shape and recipe.scheme_for(parameter, found.scheme, names) == found.scheme:
            nbytes = sum(source.tensors[key].nbytes for key in binding.sources)
            tensor = Tensor(parameter.name, found.shape, found.dtype, found.stored)
            return Assignment(tensor, binding.sources, found.stored, parameter.dtype, nbytes, keep=planes)
    # transformers joins or splits values, so quantized parts are decoded.
    scheme = _plain_if_integer(recipe.scheme_for(parameter, None, names), parameter)
    parameter = _quantizable(parameter, scheme)
    tensor = _target(parameter, _fitted(scheme, parameter, binding.read))
    parts = [source.tensors[key] for key in binding.sources]
    nbytes = parts[0].nbytes if len(parts) == 1 else _bytes(parameter.shape, first.dtype)
    return Assignment(tensor, binding.sources, first.stored, parameter.dtype, nbytes, binding.read, role=parameter.role)


def _tensor(source: Source, parameter: ParameterSpec, found: SourceTensor, scheme: Scheme) -> Assignment:
    """Assign one tensor of the source, whose planes are kept if it is already stored in ``scheme``."""
    name = found.name
    scheme = _plain_if_integer(scheme, parameter)
    if found.scheme is not None and scheme.stated == found.scheme.stated:
        tensor = Tensor(parameter.name, found.shape, found.dtype, found.scheme, transposed=found.transposed)
        return Assignment(
            tensor, (name,), found.scheme, parameter.dtype, found.nbytes, keep=lambda: source.planes(name),
            role=parameter.role,
        )  # fmt: skip

    parameter = _quantizable(parameter, scheme)

    def read() -> Values:
        return values(source, name)

    scheme = _fitted(scheme, parameter, read, found.transposed)
    return Assignment(
        _target(parameter, scheme), (name,), found.stored, parameter.dtype, found.nbytes, read, found.transposed,
        at_hand=found.scheme is None and not found.computed, role=parameter.role,
    )  # fmt: skip


def _fitted(scheme: Scheme, parameter: ParameterSpec, read: Callable[[], Values], transposed: bool = False) -> Scheme:
    """Return ``scheme`` with parameters that depend on the values set; only schemes that have such read the values."""
    if type(scheme).fitted is Scheme.fitted:
        return scheme
    try:
        array, dtype = read()
        array = rounded(array, dtype, parameter.dtype)
        return scheme.fitted(
            np.swapaxes(array, -1, -2) if transposed != parameter.transposed else array, parameter.dtype
        )
    except SchemeError as error:
        raise SchemeError(f"tensor {parameter.name!r}: {error}") from error


def rounded(array: np.ndarray, dtype: str, to: str) -> np.ndarray:
    """Round values of ``dtype`` to the dtype ``to``. transformers rounds to the model's before it quantizes."""
    return array if dtype == to else encode(make(to), array, dtype)["values"]


def _quantizable(parameter: ParameterSpec, scheme: Scheme) -> ParameterSpec:
    """Return the parameter as a scheme can hold it: quantized values stand for float32 in a model of float64."""
    return replace(parameter, dtype="f32") if parameter.dtype == "f64" and scheme.lossy else parameter


def _plain_if_integer(scheme: Scheme, parameter: ParameterSpec) -> Scheme:
    """Return ``scheme``, or the plain scheme of an integer tensor: no rule on names may turn integers into floats."""
    return make(parameter.dtype) if isinstance(scheme, Plain) and not DTYPES[parameter.dtype].is_float else scheme


def _target(parameter: ParameterSpec, scheme: Scheme) -> Tensor:
    transposed = parameter.transposed and not isinstance(scheme, Plain)
    shape = swapped(parameter.shape) if transposed else parameter.shape
    dtype = scheme.name if isinstance(scheme, Plain) else parameter.dtype
    tensor = Tensor(parameter.name, shape, dtype, scheme, transposed=transposed)
    try:
        tensor.nbytes  # noqa: B018 - raises SchemeError if the scheme cannot hold the tensor
    except SchemeError as error:
        raise RecipeError(f"tensor {parameter.name!r}: {error}") from error
    return tensor


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return DTYPES[dtype].nbytes(shape)


def _calibrated(
    assignment: Assignment, statistics: Statistics | None, names: Sequence[str], is_named: bool
) -> Assignment:
    """Return the assignment with a scheme that knows the range of inputs, if it needs to; see ``input_ranges``."""
    scheme = assignment.tensor.scheme
    if assignment.read is None or not scheme.needs_inputs:
        return assignment
    scheme, why = input_ranges.calibrated(scheme, statistics, names, is_named)
    return replace(assignment, tensor=replace(assignment.tensor, scheme=scheme), uncalibrated=why)


def _weighted(assignment: Assignment, importance: np.ndarray) -> Assignment:
    """Return the assignment with an importance of its columns."""
    shape = assignment.tensor.shape
    try:
        if len(shape) < 3 or importance.ndim < 2:
            check_importance(importance.reshape(-1), shape)
            return replace(assignment, importance=importance.reshape(-1))
        check_importance(importance, (math.prod(shape[:-2]), shape[-1]))
    except SchemeError as error:
        raise RecipeError(f"tensor {assignment.tensor.name!r}: {error}") from error
    return replace(assignment, importance=importance)


def _rounded_by(factors: Factors, assignment: Assignment, hessian: Hessians | None) -> Assignment:
    """Return the assignment with the encoder of a method, or with the reason why the method cannot be used."""
    tensor = assignment.tensor
    if assignment.read is None or tensor.alias_of is not None or not tensor.scheme.lossy or len(tensor.shape) < 2:
        return assignment
    *matrices, rows, columns = tensor.shape
    if quantizer_of(tensor.scheme, columns) is None:
        return replace(assignment, fallback=f"{tensor.scheme.stated.text} is always rounded to nearest")
    if hessian is None:
        return replace(assignment, fallback="the statistics have no Hessian of it")
    if hessian.shape != (math.prod(matrices), columns, columns):
        raise SourceError(
            f"statistics of another model: tensor {tensor.name!r} of shape {list(tensor.shape)} has Hessians of shape "
            f"{list(hessian.shape)}, not {[math.prod(matrices), columns, columns]}"
        )
    return replace(assignment, method=Encoder(factors, hessian, rows))


def _alias(target: Assignment, name: str) -> Assignment:
    t = target.tensor
    tensor = Tensor(name, t.shape, t.dtype, t.scheme, t.name, t.transposed)
    return Assignment(tensor, target.sources, target.origin, target.model_dtype, 0)


def _apart(source: Source, bindings: Mapping[str, Binding], name: str, owner: str) -> bool:
    """Tell whether a checkpoint holds different values for tensors that are usually tied, and the config unties them.

    Some classes tie theirs whatever the config says (T5), and transformers then keeps both as well.

    Raises:
        SourceError: it holds them, and the config ties them: one of them would be lost.
    """
    if name not in bindings or owner not in bindings:
        return False
    if not (bindings[name].sources and bindings[owner].sources):
        return False
    a, b = bindings[name].sources[0], bindings[owner].sources[0]
    if a == b or np.array_equal(values(source, a)[0], values(source, b)[0]):
        return False
    document = source.documents.get("config.json", b"{}")
    if parse_json("config.json", document, constants=True).get("tie_word_embeddings") is False:
        return True
    raise SourceError(
        f"{source.path}: the config ties {name!r} to {owner!r}, but the checkpoint holds two different tensors; "
        "set tie_word_embeddings to false in config.json to keep both"
    )
