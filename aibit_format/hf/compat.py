"""Leans on the insides of transformers, here and nowhere else.

Each name in `INSIDES` is private to transformers, lies in a module that its documentation does not promise, or behaves
in a way that is documented nowhere. It says why it is needed. `CHECKED` are the versions that all of them were checked
against; ``pyproject.toml`` bounds what is installed. A name that is not as expected raises `IncompatibleLibraryError`;
there is no silent other way. transformers is imported when a function here is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleLibraryError, MissingPackageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

CHECKED = ("5.20", "5.23", "5.24")  # first two numbers of the version

# A part that generation on one device does not need, and that is slow to import: see cli/fast_imports.py.
SLOW_TO_IMPORT = "transformers.generation.continuous_batching"


@dataclass(frozen=True, slots=True)
class Inside:
    """Describe a name inside transformers: where it is, why it is needed, and the arguments it is called with."""

    module: str  # below transformers
    attribute: str  # with dots: an attribute of a class
    reason: str
    arguments: tuple[str, ...] | None = None  # None: it is not called


_CONFIGS, _MODELS, _LOADING = "configuration_utils", "modeling_utils", "core_model_loading"

INSIDES = {
    inside.attribute: inside
    for inside in (
        # Configurations and classes.
        Inside("models.auto.configuration_auto", "CONFIG_MAPPING", "the configuration class of a model type"),
        Inside("models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "the names of a model type's classes"),
        Inside("models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING", "the classes of a configuration"),
        Inside(_CONFIGS, "PreTrainedConfig.sub_configs", "which keys of a config are configs themselves"),
        Inside(_CONFIGS, "PreTrainedConfig.attribute_map", "older names of a config's keys"),
        # Building a model without weights.
        Inside(_MODELS, "PreTrainedModel._from_config", "builds a model in a dtype", ("config", "dtype")),
        Inside("initialization", "no_init_weights", "keeps a constructor from filling weights", ()),
        # What a model says of its tensors.
        Inside(_MODELS, "PreTrainedModel._get_dtype_plan", "which tensors stay in float32", ("self", "dtype")),
        Inside(_MODELS, "PreTrainedModel._keep_in_fp32_modules", "modules that are never quantized"),
        Inside(_MODELS, "PreTrainedModel.get_expanded_tied_weights_keys", "fills all_tied_weights_keys", ("self",)),
        Inside(_LOADING, "build_glob_alternation", "how the names in a dtype plan are matched", ("globs",)),
        Inside("quantizers.quantizers_utils", "should_convert_module", "how names in lists of modules are matched",
               ("full_name", "patterns")),
        Inside("quantizers.base", "HfQuantizer.get_modules_to_not_convert", "modules that load_in_8bit leaves alone",
               ("model", "skip_modules", "keep_in_fp32_modules")),
        Inside("pytorch_utils", "Conv1D", "GPT-2's Linear, whose weight is [in, out]"),
        # How names in a checkpoint become names in the model.
        Inside("conversion_mapping", "get_model_conversion_mapping", "what is renamed, joined or split", ("model",)),
        Inside(_LOADING, "WeightRenaming", "tells renamings from conversions"),
        Inside(_LOADING, "WeightConverter", "tells renamings from conversions"),
        Inside(_LOADING, "WeightConverter.add_tensor", "takes a tensor that is joined or split",
               ("self", "target_key", "source_key", "source_pattern", "future")),
        Inside(_LOADING, "WeightConverter.convert", "joins or splits the tensors it took",
               ("self", "layer_name", "model", "config")),
        Inside(_LOADING, "rename_source_key", "a tensor's name in the model",
               ("source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict")),
        # What a loaded model is marked with.
        Inside("quantizers.quantizer_bnb_8bit", "Bnb8BitHfQuantizer", "what saving and PEFT look for",
               ("quantization_config", "pre_quantized")),
        Inside("quantizers.quantizer_bnb_4bit", "Bnb4BitHfQuantizer", "what saving and PEFT look for",
               ("quantization_config", "pre_quantized")),
        # Several processes.
        Inside(_MODELS, "PreTrainedModel.tp_plan", "how a model's weights are cut"),
        Inside(_MODELS, "PreTrainedModel._tp_size", "static caches are sized by it"),
        Inside("integrations.tensor_parallel", "replace_layer_number_by_wildcard", "how names in that plan are matched",
               ("name",)),
        # Attention.
        Inside("integrations.sdpa_attention", "sdpa_attention_forward", "attention over inputs that were widened",
               ("module", "query", "key", "value", "attention_mask", "position_bias", "cache")),
        Inside("masking_utils", "sdpa_mask", "the mask of that attention"),
        Inside(_CONFIGS, "PreTrainedConfig._attn_implementation", "which way of attention a model has"),
        Inside(_MODELS, "PreTrainedModel._can_set_attn_implementation", "whether it can be told another", ()),
    )
}  # fmt: skip


def inside(name: str) -> Any:
    """Return what `INSIDES` lists as ``name``.

    Raises:
        MissingPackageError: transformers is not installed.
        IncompatibleLibraryError: the installed version has no such name, or it takes other arguments.
    """
    entry = INSIDES[name]
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("this needs transformers: pip install 'aibit-format[hf]'") from error
    try:
        found = reduce(getattr, entry.attribute.split("."), import_module(f"transformers.{entry.module}"))
    except (ImportError, AttributeError) as error:
        raise _incompatible(entry, transformers.__version__) from error
    if entry.arguments is not None and not _takes(found, entry.arguments):
        raise _incompatible(entry, transformers.__version__)
    return found


def _incompatible(entry: Inside, version: str) -> IncompatibleLibraryError:
    name = f"transformers.{entry.module}.{entry.attribute}"
    if entry.arguments is not None:
        name = f"{name}({', '.join(entry.arguments)})"
    return IncompatibleLibraryError("transformers", version, name, entry.reason, CHECKED)


@cache
def _takes(function: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    parameters = inspect.signature(function).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return any_name or parameters.keys() >= set(arguments)


def of(holder: Any, owner: str, attribute: str) -> Any:
    """Return an attribute of a model or configuration, which `INSIDES` lists as one of its class ``owner``.

    Raises:
        IncompatibleLibraryError: the installed version's class has no such attribute.
    """
    inside(f"{owner}.{attribute}")
    return getattr(holder, attribute)


# Configurations and classes.


def config_class(model_type: object) -> type[PreTrainedConfig] | None:
    """Return the configuration class of a model type; ``None`` if the installed transformers does not know it."""
    known = inside("CONFIG_MAPPING")
    return known[model_type] if isinstance(model_type, str) and model_type in known else None


def sub_configs(family: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the keys of a configuration class that are configurations themselves, and their classes."""
    return dict(of(family, "PreTrainedConfig", "sub_configs"))


def older_names(family: type[PreTrainedConfig]) -> Mapping[str, str]:
    """Return the names that a configuration class has for keys beside its own."""
    return of(family, "PreTrainedConfig", "attribute_map")


def listed_class(config: PreTrainedConfig, architecture: str) -> type[PreTrainedModel] | None:
    """Return the class called ``architecture`` that transformers' tables list for the configuration, if they do."""
    for name in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING"):
        inside(name)  # one of the many such pairs stands for all
    tables = vars(import_module("transformers.models.auto.modeling_auto"))
    for name, table in tables.items():
        if not name.startswith("MODEL_") or not name.endswith("_MAPPING_NAMES"):
            continue
        if architecture not in _several(table.get(config.model_type)):
            continue
        for found in _several(tables[name.removesuffix("_NAMES")][type(config)]):
            if found.__name__ == architecture:
                return found
    return None


def _several(entry: Any) -> Sequence[Any]:
    return entry if isinstance(entry, (tuple, list)) else (entry,)


# Building a model without weights.


def build(family: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model in its configuration's dtype."""
    inside("PreTrainedModel._from_config")
    return family._from_config(config, dtype=config.dtype)


@contextmanager
def no_initializers() -> Iterator[None]:
    """Keep constructors from filling weights and from tying them."""
    with inside("no_init_weights")():
        yield


# What a model says of its tensors.


def ties(model: Any) -> dict[str, str]:
    """Return the names of tied tensors, each with the name of the tensor that it shares."""
    inside("PreTrainedModel.get_expanded_tied_weights_keys")
    return dict(getattr(model, "all_tied_weights_keys", {}))  # only models whose constructor calls post_init have it


def float32_names(model: Any) -> Callable[[str], bool]:
    """Return a function that tells whether ``from_pretrained`` keeps a tensor in float32 in a model of 16 bits."""
    patterns = of(model, "PreTrainedModel", "_get_dtype_plan")(model.config.dtype)
    if not patterns:
        return lambda name: False
    expression = inside("build_glob_alternation")(list(patterns))[0]
    return lambda name: expression.search(name) is not None


def never_quantized(model: Any) -> list[str]:
    """Return the modules that stay in float32, and so are not quantized, whatever a config asks for."""
    return list(of(model, "PreTrainedModel", "_keep_in_fp32_modules") or ())


def skipped_by_default(model: Any) -> list[str]:
    """Return the modules that ``load_in_8bit`` does not quantize, by its own rule."""
    kept = of(model, "PreTrainedModel", "_keep_in_fp32_modules")
    return inside("HfQuantizer.get_modules_to_not_convert")(model, None, kept)


def is_quantized_beside(name: str, skipped: list[str]) -> bool:
    """Return whether transformers quantizes the module ``name`` where those in ``skipped`` are left alone."""
    return inside("should_convert_module")(name, skipped)


def is_conv1d(module: object) -> bool:
    """Return whether a module, or a class of modules, is a Conv1D."""
    family = inside("Conv1D")
    return issubclass(module, family) if isinstance(module, type) else isinstance(module, family)


def is_linear(module: object) -> bool:
    """Return whether transformers can replace a module by a layer of bitsandbytes."""
    from torch import nn

    return type(module) is nn.Linear or is_conv1d(module)


# How names in a checkpoint become names in the model.


class CheckpointNames:
    """Turn names of a checkpoint into names of a model, as transformers does when it loads one."""

    def __init__(self, model: PreTrainedModel) -> None:
        renaming, converter = inside("WeightRenaming"), inside("WeightConverter")
        for method in ("add_tensor", "convert"):  # which callers call on `converters`
            inside(f"WeightConverter.{method}")
        mapping = inside("get_model_conversion_mapping")(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, renaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, converter)]
        self._prefix, self._state = model.base_model_prefix, model.state_dict()
        self._rename = inside("rename_source_key")
        # Those that join or split tensors, by the pattern that `rename` gives.
        self.converters: dict[str, Any] = {
            pattern: entry for entry in self._converters for pattern in entry.source_patterns
        }

    def rename(self, name: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the converter that makes the tensor, if one does."""
        return self._rename(name, self._renamings, self._converters, self._prefix, self._state)


# What a loaded model is marked with.

_QUANTIZERS = {"load_in_8bit": "Bnb8BitHfQuantizer", "load_in_4bit": "Bnb4BitHfQuantizer"}
_FLAGS = {"load_in_8bit": "is_loaded_in_8bit", "load_in_4bit": "is_loaded_in_4bit"}


def mark_quantized(model: Any, config: Any, skipped: list[str], kinds: Iterable[str]) -> None:
    """Set what transformers and PEFT look for on a model with layers of bitsandbytes.

    Args:
        config: the model's ``BitsAndBytesConfig``, of one kind of layer.
        skipped: names of the modules that are not quantized.
        kinds: ``"load_in_8bit"``, ``"load_in_4bit"`` or both: those that the model has layers of.
    """
    argument = next(name for name in _QUANTIZERS if getattr(config, name))
    quantizer = inside(_QUANTIZERS[argument])(config, pre_quantized=True)
    quantizer.modules_to_not_convert = skipped
    model.config.quantization_config = config
    model.config._is_quantized = True
    model.hf_quantizer, model.is_quantized, model.quantization_method = quantizer, True, config.quant_method
    for kind in kinds:
        setattr(model, _FLAGS[kind], True)


def remember_replaced(layer: Any, family: type) -> None:
    """Tell a layer of bitsandbytes which class it takes the place of: saving turns a Conv1D's weight round by it."""
    layer.source_cls = family


def replaced_conv1d(layer: Any) -> bool:
    """Return whether a layer of bitsandbytes is in the place of a Conv1D."""
    family = getattr(layer, "source_cls", None)
    return isinstance(family, type) and is_conv1d(family)


# Several processes.


class TensorParallelPlan:
    """Look up how a model's modules and parameters are cut; empty if transformers has no plan for the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._styles: Mapping[str, str] = of(model, "PreTrainedModel", "tp_plan") or {}
        self._pattern = inside("replace_layer_number_by_wildcard")

    def __bool__(self) -> bool:
        return bool(self._styles)

    def style(self, name: str) -> str | None:
        """Return the style of a module or parameter; ``None`` if the plan does not name it."""
        return self._styles.get(self._pattern(name))


def set_ranks(model: Any, count: int) -> None:
    """Tell a model that it is one of ``count`` ranks: static caches are for the rank's part of the heads."""
    inside("PreTrainedModel._tp_size")
    model._tp_size = count


# Attention.


def attends_with(model: PreTrainedModel, name: str) -> bool:
    """Return whether a model attends in the way called ``name``, and can be told another."""
    found = of(model.config, "PreTrainedConfig", "_attn_implementation")
    return found == name and of(model, "PreTrainedModel", "_can_set_attn_implementation")()


def sdpa() -> tuple[Callable[..., tuple[torch.Tensor, None]], Callable[..., Any]]:
    """Return transformers' attention by torch's fused kernels, and the function that makes its mask."""
    return inside("sdpa_attention_forward"), inside("sdpa_mask")
