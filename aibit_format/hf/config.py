"""Turns ``config.json`` into a transformers configuration and class, without letting the file choose what runs.

Only keys that the configuration class itself knows are passed to it, the class comes from transformers' own tables,
and the dtype from a closed list. transformers is imported when a function here is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..container.documents import FORBIDDEN_KEYS
from ..errors import IncompatibleLibraryError, LoadError
from . import compat

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Names in config.json and torch -> names here. No other dtype is accepted.
CONFIG_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
DEFAULT_DTYPE = "float32"  # transformers' own default for a config without a dtype

# Keys that configuration classes accept without declaring them: older names, and defaults for generation.
_COMMON = frozenset({
    "torch_dtype", "num_labels", "tie_word_embeddings", "tie_encoder_decoder", "is_decoder", "add_cross_attention",
    "rope_theta", "rope_scaling", "rope_type", "partial_rotary_factor", "rope_local_base_freq", "pruned_heads",
    "finetuning_task", "task_specific_params", "prefix", "tokenizer_class", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "sep_token_id", "pad_token_id", "bos_token_id", "eos_token_id",
    "position_embedding_type", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers",
})  # fmt: skip


def dtype_name(config: Mapping[str, Any]) -> str:
    """Return the model's dtype as ``config.json`` names it: ``"bfloat16"``.

    Raises:
        LoadError: it is none of float32, float16, bfloat16, float64.
    """
    inner = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else {}
    name = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or DEFAULT_DTYPE  # type: ignore[union-attr]
    if not isinstance(name, str) or name.removeprefix("torch.") not in CONFIG_DTYPES:
        raise LoadError(f"config.json: dtype {name!r}, expected one of {', '.join(CONFIG_DTYPES)}")
    return name.removeprefix("torch.")


# Words in the keys of numbers that constructors trust, and the largest number accepted for each unless the file has
# more tensors: a layer costs a module, a position a buffer of 8 bytes.
_BELIEVED = {"layer": 1000, "position": 1 << 27}


def refuse_absurd(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a parsed ``config.json`` with more layers than ``tensors`` allow, or with absurdly many positions.

    Building such a model would exhaust memory before its tensors are compared with the file's.

    Raises:
        LoadError: names the key.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            refuse_absurd(value, tensors)
        elif isinstance(value, int):
            for word, most in _BELIEVED.items():
                if word in key and value > max(most, tensors):
                    raise LoadError(f"config.json: {key} is {value}, at most {max(most, tensors)} is believed here")


def build_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Build the transformers configuration from the allowed keys of a parsed ``config.json``.

    Raises:
        LoadError: the installed transformers does not know the model type, or refuses a value.
        MissingPackageError: transformers is not installed.
    """
    model_type = config.get("model_type")
    family = compat.config_class(model_type)
    if family is None:
        raise LoadError(f"config.json: model type {model_type!r} is unknown to the installed transformers")
    values, _ = allowed(config, family)
    values["dtype"] = dtype_name(config)
    values.pop("torch_dtype", None)
    try:
        return family.from_dict(values)
    except Exception as error:  # many kinds of validators run inside
        raise LoadError(f"config.json: refused by {family.__name__}: {error}") from error


def allowed(config: Mapping[str, Any], family: type[PreTrainedConfig]) -> tuple[dict[str, Any], list[str]]:
    """Return the part of ``config`` whose keys ``family`` and its sub-configurations know, and the other keys."""
    known = _known_keys(family)
    inside = compat.sub_configs(family)
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in config.items():
        if key not in known or key.startswith("_") or key in FORBIDDEN_KEYS:
            dropped.append(key)
        elif key in inside and isinstance(value, Mapping):
            inner = _sub_family(inside[key], value)
            kept[key], lost = allowed(value, inner)
            dropped += [f"{key}.{name}" for name in lost]
        else:
            kept[key] = value
    return kept, dropped


def _known_keys(family: type[PreTrainedConfig]) -> frozenset[str]:
    from dataclasses import fields, is_dataclass

    keys = {"model_type", *_COMMON, *compat.older_names(family), *compat.sub_configs(family)}
    if is_dataclass(family):
        keys |= {field.name for field in fields(family)}
    with suppress(Exception):  # for a class that cannot be built without arguments, its fields must suffice
        keys |= {key for key in vars(family()) if not key.startswith("_")}
    return frozenset(keys)


def _sub_family(family: Any, value: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return a sub-configuration's class; if the parent says only "some configuration", its model type decides."""
    from transformers import AutoConfig

    if family is not AutoConfig:
        return family
    found = compat.config_class(value.get("model_type"))
    if found is None:
        raise LoadError(f"config.json: sub-model type {value.get('model_type')!r} is unknown to transformers")
    return found


def model_class(config: PreTrainedConfig, architecture: str) -> type[PreTrainedModel]:
    """Return the class called ``architecture`` if transformers' tables list it for this configuration.

    Raises:
        LoadError: they do not.
    """
    found = compat.listed_class(config, architecture)
    if found is None:
        raise LoadError(
            f"architecture {architecture!r} is not one of transformers' for model type {config.model_type!r}"
        )
    return found


def empty_model(config: PreTrainedConfig, architecture: str) -> PreTrainedModel:
    """Build a model without weights: every parameter on the meta device, every buffer real that can be computed.

    A buffer that neither its constructor fills with plain values nor ``from_pretrained`` computes is on the meta device
    too, and has to come from a file. Nothing of this is seen by other threads.

    Raises:
        LoadError: transformers has no such class for this configuration, or it cannot be built from it.
    """
    import torch

    from . import construction

    family, dtype = model_class(config, architecture), getattr(torch, str(config.dtype).removeprefix("torch."))
    try:
        # Tensors made in inference mode would count no writes.
        with torch.inference_mode(False), torch.no_grad():
            model = compat.build(family, config, dtype)
            with construction.zeros_in(construction.finish(model, dtype)):
                compat.compute_buffers(model)
    except IncompatibleLibraryError:
        raise
    except Exception as error:  # of many kinds: what a config says reaches every part of a model
        raise LoadError(f"config.json: {architecture} cannot be built from it: {error}") from error
    return model
