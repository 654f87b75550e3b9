"""Contains everything that depends on the insides of transformers; no other module does.

Each name in ``INSIDES`` is private to transformers, is in a module that its documentation does not mention, or is used
for behaviour that is not documented. The entry gives the reason for using it. All names were checked in the versions
``CHECKED``; ``pyproject.toml`` bounds the versions installed. A name that is missing or takes other arguments raises
``IncompatibleLibraryError``: there is no silent fallback. transformers is imported when a function here is called.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import IncompatibleLibraryError, MissingPackageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

CHECKED = ("5.20", "5.23", "5.24")  # first two numbers of the version

# A part that is slow to import, and that generation on one device does not need; see cli/fast_imports.py.
SLOW_TO_IMPORT = "transformers.generation.continuous_batching"


@dataclass(frozen=True, slots=True)
class Inside:
    """Describe a name inside transformers: its place, the reason for using it, and the arguments it is called with."""

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
        Inside("models.auto.auto_factory", "_BaseAutoModelClass", "what automatic classes load models by"),
        Inside("models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "the names of a model type's classes"),
        Inside("models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING", "the classes of a configuration"),
        Inside("models.auto.tokenization_auto", "TOKENIZER_MAPPING_NAMES", "the names of tokenizer classes"),
        Inside(_CONFIGS, "PreTrainedConfig.sub_configs", "which keys of a config are configs themselves"),
        Inside(_CONFIGS, "PreTrainedConfig.sub_configs_defaults", "their model types where a config does not say them"),
        Inside(_CONFIGS, "PreTrainedConfig.attribute_map", "older names of a config's keys"),
        # Building a model without weights.
        Inside(_MODELS, "PreTrainedModel._from_config", "builds in the default dtype if none is given",
               ("config", "dtype")),
        Inside(_MODELS, "get_torch_context_manager_or_global_device", "nothing is initialized on meta", ()),
        Inside(_MODELS, "PreTrainedModel._init_weights", "computes the buffers of a module", ("self", "module")),
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
        Inside(_MODELS, "PreTrainedModel._keys_to_ignore_on_load_unexpected", "tensors of a checkpoint without a use"),
        Inside(_MODELS, "PreTrainedModel._keys_to_ignore_on_load_missing", "tensors that a checkpoint may lack"),
        # What a loaded model is marked with.
        Inside("quantizers.quantizer_bnb_8bit", "Bnb8BitHfQuantizer", "what saving and PEFT look for",
               ("quantization_config", "pre_quantized")),
        Inside("quantizers.quantizer_bnb_4bit", "Bnb4BitHfQuantizer", "what saving and PEFT look for",
               ("quantization_config", "pre_quantized")),
        # Experts.
        Inside(_MODELS, "PreTrainedModel._can_set_experts_implementation", "whether it can be told another way", ()),
        Inside(_MODELS, "PreTrainedModel.set_experts_implementation", "one expert after another",
               ("self", "experts_implementation")),
        # Several processes.
        Inside(_MODELS, "PreTrainedModel.tp_plan", "how a model's weights are cut"),
        Inside(_MODELS, "PreTrainedModel.ep_plan", "which experts are divided among ranks"),
        Inside(_MODELS, "PreTrainedModel._tp_size", "static caches are sized by it"),
        Inside("integrations.tensor_parallel", "replace_layer_number_by_wildcard", "how names in that plan are matched",
               ("name",)),
        # Attention.
        Inside("integrations.sdpa_attention", "sdpa_attention_forward", "attention over inputs that were widened",
               ("module", "query", "key", "value", "attention_mask", "position_bias", "cache")),
        Inside("masking_utils", "sdpa_mask", "the mask of that attention"),
        Inside(_CONFIGS, "PreTrainedConfig._attn_implementation", "which way of attention a model has"),
        Inside(_MODELS, "PreTrainedModel._can_set_attn_implementation", "whether it can be told another", ()),
        Inside(_MODELS, "PreTrainedModel._compatible_flash_implementations", "kernels taken in the place of others"),
        Inside("modeling_flash_attention_utils", "FLASH_ATTENTION_COMPATIBILITY_MATRIX",
               "whether a package is installed, in whose place a kernel would be fetched"),
    )
}  # fmt: skip


def inside(name: str) -> Any:
    """Return the object inside transformers that ``INSIDES`` lists as ``name``.

    Raises:
        MissingPackageError: transformers is not installed.
        IncompatibleLibraryError: the installed version lacks it, or it takes other arguments.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("this needs transformers: pip install 'aibit-format[hf]'") from error
    return _found(INSIDES[name], cast("Hashable", transformers))


@cache
def _found(entry: Inside, transformers: Hashable) -> Any:
    """Return what is found once for each import of transformers, as a program may import it anew."""
    try:
        found = reduce(getattr, entry.attribute.split("."), import_module(f"transformers.{entry.module}"))
    except (ImportError, AttributeError) as error:
        raise incompatible(entry) from error
    if entry.arguments is not None and not _takes(found, entry.arguments):
        raise incompatible(entry)
    return found


def incompatible(entry: Inside) -> IncompatibleLibraryError:
    """Return the error for a name that the installed transformers does not have as expected."""
    from transformers import __version__

    name = f"transformers.{entry.module}.{entry.attribute}"
    if entry.arguments is not None:
        name = f"{name}({', '.join(entry.arguments)})"
    return IncompatibleLibraryError("transformers", __version__, name, entry.reason, CHECKED)


@cache
def _takes(function: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    parameters = inspect.signature(function).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return any_name or parameters.keys() >= set(arguments)


def of(holder: Any, owner: str, attribute: str) -> Any:
    """Return an attribute of a model or configuration; ``INSIDES`` must list it as ``owner.attribute``.

    Raises:
        IncompatibleLibraryError: in the installed version, the class ``owner`` has no such attribute.
    """
    inside(f"{owner}.{attribute}")
    return getattr(holder, attribute)


# Configurations and classes.


def config_class(model_type: object) -> type[PreTrainedConfig] | None:
    """Return the configuration class of a model type; ``None`` if the installed transformers does not know it."""
    known = inside("CONFIG_MAPPING")
    return known[model_type] if isinstance(model_type, str) and model_type in known else None


def automatic_model() -> type:
    """Return the class that all automatic classes of models come from, with their ``from_pretrained``."""
    return inside("_BaseAutoModelClass")


def classes_wanted(cls: type, config: PreTrainedConfig) -> tuple[type, ...]:
    """Return the classes of models that an automatic class makes of a configuration; of another class, itself."""
    mapping = getattr(cls, "_model_mapping", None)
    if mapping is None:
        return (cls,)
    known = mapping.get(type(config), ())
    return tuple(known) if isinstance(known, (list, tuple)) else (known,)


# Names that files have for tokenizers of no model's own.
_BACKENDS = frozenset({"PreTrainedTokenizer", "PythonBackend", "SentencePieceBackend", "TokenizersBackend"})


def is_tokenizer(name: object) -> bool:
    """Tell whether a file may name this class for its tokenizer.

    transformers takes any class that it exports, such as a model's, and calls its ``from_pretrained``. Here it must be
    in its table of tokenizers, or be called so and be one. A tokenizer that transformers does not have is no danger.
    """
    if not isinstance(name, str):
        return False
    plain = name.removesuffix("Fast")
    known = inside("TOKENIZER_MAPPING_NAMES").values()
    if plain in _BACKENDS or any(plain == each.removesuffix("Fast") for each in known if each):
        return True
    import transformers

    found = [getattr(transformers, each, None) for each in (plain, plain + "Fast")] if plain.isidentifier() else [0]
    return plain.endswith("Tokenizer") and all(
        each is None or getattr(each, "is_dummy", False)
        or (isinstance(each, type) and issubclass(each, transformers.PreTrainedTokenizerBase))
        for each in found
    )  # fmt: skip


def sub_configs(family: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the keys of a configuration class whose values are configurations, each with its class."""
    return dict(of(family, "PreTrainedConfig", "sub_configs"))


def default_type(family: type[PreTrainedConfig], key: str) -> str | None:
    """Return the model type of a sub-configuration that does not state one; ``None`` if there is none for it."""
    spec = of(family, "PreTrainedConfig", "sub_configs_defaults").get(key)
    return getattr(spec, "model_type", None) or None


@cache
def declared(family: type[PreTrainedConfig]) -> frozenset[str]:
    """Return the keys that a configuration class declares, with their older names."""
    older = of(family, "PreTrainedConfig", "attribute_map")
    names = [field.name for field in dataclasses.fields(family)] if dataclasses.is_dataclass(family) else []
    return frozenset({"model_type", *names, *older, *sub_configs(family)})


def is_of_all(name: str) -> bool:
    """Tell whether an attribute belongs to the class of all configurations, which acts on it."""
    from transformers import PreTrainedConfig

    return hasattr(PreTrainedConfig, name)


def mentioned(family: type[PreTrainedConfig], keys: Collection[str]) -> list[str]:
    """Return those of the keys that the code of the models of a configuration class reads from a configuration."""
    if not keys:
        return []
    read = re.compile(r"config\.(\w+)|getattr\([\w.]*config, *[\"'](\w+)")
    found = {name for pair in read.findall(_code(_models_file(family))) for name in pair}
    return [key for key in keys if key in found]


def _models_file(family: type[PreTrainedConfig]) -> str:
    """Return the name of the module with the models of a configuration class, which may not exist."""
    return family.__module__.replace(".configuration_", ".modeling_")


def _code(module: str) -> str:
    """Return the source text of a module; nothing if there is none."""
    spec = find_spec(module)
    return "" if spec is None or spec.origin is None else Path(spec.origin).read_text("utf-8")


def listed_class(config: PreTrainedConfig, architecture: str) -> type[PreTrainedModel] | None:
    """Return the class ``architecture`` if transformers lists it for this configuration; otherwise ``None``.

    Its tables list the classes for tasks; the file with the models of a configuration lists all of them.
    """
    for name in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING"):
        inside(name)  # one of many such pairs, checked for all
    tables = vars(import_module("transformers.models.auto.modeling_auto"))
    for name, table in tables.items():
        if not name.startswith("MODEL_") or not name.endswith("_MAPPING_NAMES"):
            continue
        if architecture not in _several(table.get(config.model_type)):
            continue
        for found in _several(tables[name.removesuffix("_NAMES")][type(config)]):
            if found.__name__ == architecture:
                return found
    return _models_beside(type(config)).get(architecture)


def _models_beside(family: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Return the public models of a configuration class, by name, from the file beside that class."""
    from transformers import PreTrainedModel

    name = _models_file(family)
    if name == family.__module__ or find_spec(name) is None:
        return {}
    module = vars(import_module(name))
    found = {name: module[name] for name in module.get("__all__", ())}
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, type) and issubclass(each, PreTrainedModel) and each.config_class is family
        and each.forward is not PreTrainedModel.forward  # a base of others
    }  # fmt: skip


def _several(entry: Any) -> Sequence[Any]:
    return entry if isinstance(entry, (tuple, list)) else (entry,)


# What a model says of its tensors.


def ties(model: Any) -> dict[str, str]:
    """Return the names of tied tensors, each with the name of the tensor that it is tied to."""
    inside("PreTrainedModel.get_expanded_tied_weights_keys")
    return dict(getattr(model, "all_tied_weights_keys", {}))  # set by post_init, which not all constructors call


def float32_names(model: Any) -> Callable[[str], bool]:
    """Return a function that tells whether ``from_pretrained`` keeps a tensor of a 16-bit model in float32."""
    patterns = of(model, "PreTrainedModel", "_get_dtype_plan")(model.config.dtype)
    if not patterns:
        return lambda name: False
    expression = inside("build_glob_alternation")(list(patterns))[0]
    return lambda name: expression.search(name) is not None


def never_quantized(model: Any) -> list[str]:
    """Return the names of the modules that stay in float32 and are not quantized, whatever the config says."""
    return list(of(model, "PreTrainedModel", "_keep_in_fp32_modules") or ())


def skipped_by_default(model: Any) -> list[str]:
    """Return the names of the modules that ``load_in_8bit`` does not quantize, by its own rule."""
    kept = of(model, "PreTrainedModel", "_keep_in_fp32_modules")
    return inside("HfQuantizer.get_modules_to_not_convert")(model, None, kept)


def is_quantized_beside(name: str, skipped: list[str]) -> bool:
    """Tell whether transformers quantizes the module ``name`` if those in ``skipped`` are not to be quantized."""
    return inside("should_convert_module")(name, skipped)


def fill(model: PreTrainedModel, module: torch.nn.Module) -> None:
    """Fill the parameters and compute the buffers of a module of the model, where they are not marked as finished."""
    of(model, "PreTrainedModel", "_init_weights")(module)


def made(family: type[PreTrainedModel], config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """Build a model as transformers does without a checkpoint, in the default dtype."""
    more = {} if attention is None else {"attn_implementation": attention}
    return of(family, "PreTrainedModel", "_from_config")(config, dtype=None, **more)


def pools_if_told(family: type[PreTrainedModel]) -> bool:
    """Tell whether a class of models takes ``add_pooling_layer``, without which its ``pooler`` is ``None``."""
    return "add_pooling_layer" in inspect.signature(family.__init__).parameters


# Subclasses of Linear that only write the same product down in another way; others, such as routers, do more.
WRITTEN_OUT = frozenset({("transformers.models.falcon.modeling_falcon", "FalconLinear")})


def is_conv1d(module: object) -> bool:
    """Tell whether a module, or a class of modules, is a Conv1D."""
    family = inside("Conv1D")
    return issubclass(module, family) if isinstance(module, type) else isinstance(module, family)


# Experts.

# Classes of experts [experts, in, out] that do not say so as others do, by ``is_transposed``.
_TRANSPOSED_EXPERTS = frozenset({("transformers.models.llama4.modeling_llama4", "Llama4TextExperts")})


def holds_experts(module: object) -> bool:
    """Tell whether a module holds the weights of all experts, each a matrix of a 3-D parameter."""
    return "Expert" in type(module).__name__


def transposes_experts(module: object) -> bool:
    """Tell whether a module has its experts' weights as [experts, in, out], and not as Linear would have them."""
    family = type(module)
    return getattr(module, "is_transposed", False) is True or (
        (family.__module__, family.__name__) in _TRANSPOSED_EXPERTS
    )


def run_experts_by_themselves(model: Any) -> None:
    """Let a model take one expert after another, of those that are routed to, instead of all as one tensor."""
    if of(model, "PreTrainedModel", "_can_set_experts_implementation")():
        of(model, "PreTrainedModel", "set_experts_implementation")("eager")


# What a loaded model is marked with.

_QUANTIZERS = {"load_in_8bit": "Bnb8BitHfQuantizer", "load_in_4bit": "Bnb4BitHfQuantizer"}
_FLAGS = {"load_in_8bit": "is_loaded_in_8bit", "load_in_4bit": "is_loaded_in_4bit"}


def mark_quantized(model: Any, config: Any, skipped: list[str], kinds: Iterable[str]) -> None:
    """Set the attributes by which transformers and PEFT recognize a model with bitsandbytes layers.

    Args:
        model: the model.
        config: its ``BitsAndBytesConfig``, for one kind of layer.
        skipped: names of the modules that are not quantized.
        kinds: ``"load_in_8bit"``, ``"load_in_4bit"`` or both: the kinds of layers in the model.
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
    """Record on a bitsandbytes layer the class that it replaces. Saving transposes the weight if that is Conv1D."""
    layer.source_cls = family


def replaced_conv1d(layer: Any) -> bool:
    """Tell whether a bitsandbytes layer replaces a Conv1D."""
    family = getattr(layer, "source_cls", None)
    return isinstance(family, type) and is_conv1d(family)


# Several processes.


class TensorParallelPlan:
    """Look up how modules and parameters of a model are cut; false if transformers has no plan for the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._styles: Mapping[str, str] = of(model, "PreTrainedModel", "tp_plan") or {}
        self._pattern = inside("replace_layer_number_by_wildcard")

    def __bool__(self) -> bool:
        return bool(self._styles)

    def style(self, name: str) -> str | None:
        """Return the style in which a module or parameter is cut; ``None`` if the plan does not name it."""
        return self._styles.get(self._pattern(name))

    def divides_experts(self, name: str) -> bool:
        """Tell whether each rank may hold some of the experts of a module, and none of its other parameters.

        It counts them as ``num_experts`` then, and takes [tokens, columns], and ids and weights of experts [tokens, k].
        """
        styles: Mapping[str, str] = of(self._model, "PreTrainedModel", "ep_plan") or {}
        if styles.get(self._pattern(name)) != "ep_dispatch_experts":
            return False
        held = dict(self._model.get_submodule(name).named_parameters())
        counts = {value.shape[:1] for value in held.values()}
        return counts == {(getattr(self._model.get_submodule(name), "num_experts", None),)} and all(
            styles.get(self._pattern(f"{name}.{key}")) == "grouped_gemm" for key in held
        )


def set_ranks(model: Any, count: int) -> None:
    """Tell a model that it runs on ``count`` ranks, so that its static caches hold only this rank's heads."""
    inside("PreTrainedModel._tp_size")
    model._tp_size = count


# Attention.


def attention_of(model: PreTrainedModel) -> Any:
    """Return the name of the attention implementation that a model uses."""
    return of(model.config, "PreTrainedConfig", "_attn_implementation")


def attends_with(model: PreTrainedModel, name: str) -> bool:
    """Tell whether a model uses the attention implementation ``name``, and can be switched to another."""
    return attention_of(model) == name and of(model, "PreTrainedModel", "_can_set_attn_implementation")()


def attentions() -> list[str]:
    """Return the names of the attention implementations that transformers has, but of kernels from its hub."""
    from transformers import AttentionInterface

    return ["eager", *sorted(name for name in AttentionInterface().valid_keys() if "/" not in name)]


def fetches_attention(config: PreTrainedConfig, name: str) -> bool:
    """Tell whether a model asked for an attention would take a kernel from the hub instead.

    transformers does where the package of a flash attention is not installed, and for models that list kernels.
    """
    if not (version := re.search(r"flash_attention_(\d+)", name)):
        return False
    packages = inside("FLASH_ATTENTION_COMPATIBILITY_MATRIX")
    number = int(version[1])
    if number not in packages or not packages[number]["general_availability_check"]():
        return True
    families = [model for each in _configs(config) for model in _models_beside(type(each)).values()]
    listed = [of(family, "PreTrainedModel", "_compatible_flash_implementations") for family in families]
    return any(names is not None and name not in names for names in listed)


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a configuration and those inside it."""
    yield config
    for key in sub_configs(type(config)):
        if (inner := getattr(config, key, None)) is not None:
            yield from _configs(inner)


def sdpa() -> tuple[Callable[..., tuple[torch.Tensor, None]], Callable[..., Any]]:
    """Return transformers' attention with torch's fused kernels, and the function that makes its mask."""
    return inside("sdpa_attention_forward"), inside("sdpa_mask")
