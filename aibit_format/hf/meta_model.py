"""Reads from a model's own modules which of its tensors are Linear, which are tied, and which are not quantized.

The model is built from its configuration without memory for weights. transformers' own rules decide what is
quantized, as ``load_in_8bit`` would, and how names in a checkpoint become names in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import interop
from ..errors import SourceError
from . import compat
from .config import CONFIG_DTYPES, build_config, dropped_keys, dtype_name, empty_model
from .layers import is_linear, multiplies, weights_used
from .limits import Limits

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "conv1d", "kept", "experts", "other", "buffer"]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """Describe a tensor that the model needs: its name, shape and dtype there, and what kind of weight it is.

    ``role``: ``linear`` and ``conv1d`` weights are quantized by default; ``kept`` ones are such weights that
    transformers does not quantize (heads, ties, modules kept in float32); ``experts`` are fused 3-D weights of a
    mixture of experts, quantized by default too; a ``buffer`` is computed by the constructor if a checkpoint lacks it;
    ``other`` is the rest. ``transposed`` weights are [..., in, out], and quantized as their transpose [..., out, in].
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    transposed: bool = False

    @property
    def takes_inputs(self) -> bool:
        """Tell whether it is the weight of a layer that multiplies its inputs with it."""
        return self.role in ("linear", "conv1d", "kept", "experts")

    @property
    def columns(self) -> int:
        """Return how many columns the inputs of the weight have."""
        return self.shape[-2] if self.transposed else self.shape[-1]


@dataclass(frozen=True)
class MetaModel:
    """Hold a model without weights: its parameters and buffers in execution order, and its ties."""

    architecture: str
    model_type: str
    dtype: str
    parameters: dict[str, ParameterSpec]
    ties: dict[str, str]  # name -> the first name, in execution order, of the tensor that both share
    module: Any  # on the meta device
    dropped_keys: tuple[str, ...]  # of its config, that reach no configuration class


def build_meta_model(
    config: Mapping[str, Any], limits: Limits, architecture: str | None = None, held: Iterable[str] | None = None
) -> MetaModel:
    """Build the model that a parsed ``config.json`` describes, without memory for its weights.

    Args:
        config: the parsed document.
        limits: what there is of tensors, which bounds what the config may ask for.
        architecture: the class, if the config names none or another is wanted.
        held: the names of a checkpoint's tensors, by which a pooling layer is left out.

    Raises:
        SourceError: the config names no architecture and none is given.
        LoadError: transformers does not know the architecture.
    """
    listed = config.get("architectures") or []
    name = architecture or (listed[0] if listed else None)
    if not isinstance(name, str):
        raise SourceError("config.json names no architecture; say which: --architecture LlamaForCausalLM")
    built = build_config(config, limits)
    model = empty_model(built, name, limits, held)
    kept = compat.skipped_by_default(model)
    # A buffer on the meta device is one that only a checkpoint can fill.
    buffers = {key for key, value in model.named_buffers() if value.device.type != "meta"}
    in_float32 = compat.float32_names(model)
    parameters = {}
    for key, value in model.state_dict().items():
        role, transposed = ("buffer", False) if key in buffers else _role(model, key, value, kept)
        stored = "f32" if value.is_floating_point() and in_float32(key) else interop.dtype_name(value.dtype)
        parameters[key] = ParameterSpec(key, tuple(value.shape), stored, role, transposed)
    dtype = CONFIG_DTYPES[dtype_name(config)]
    dropped = tuple(dropped_keys(config))
    return MetaModel(name, built.model_type, dtype, parameters, _ties(model, parameters), model, dropped)


def _ties(model: Any, parameters: Iterable[str]) -> dict[str, str]:
    """Map each tied name to the first of its group: in a file, an alias follows its target."""
    pairs = compat.ties(model)
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault(pairs.get(name, name), []).append(name)
    return {name: group[0] for group in groups.values() for name in group[1:]}


def _role(model: torch.nn.Module, key: str, value: torch.Tensor, kept: list[str]) -> tuple[Role, bool]:
    """Return what a weight is, and whether it is transposed."""
    owner, _, leaf = key.rpartition(".")
    module = model.get_submodule(owner)
    if leaf == "weight" and (is_linear(module) or multiplies(module)):
        around, _, name = owner.rpartition(".")
        used = weights_used(type(model.get_submodule(around)))
        if name in used or not compat.is_quantized_beside(owner, kept):
            return "kept", False
        return ("conv1d", True) if compat.is_conv1d(module) else ("linear", False)
    if value.ndim == 3 and value.is_floating_point() and compat.holds_experts(module):
        return "experts", compat.transposes_experts(module)
    return "other", False
