"""Turns ``config.json`` into a transformers configuration and class, without letting the file choose what runs.

What is plain data reaches the configuration class, declared there or not: many classes read keys that they do not
declare. What fetches or runs code, or would replace a part of the class itself, is left out. The model's class comes
from transformers' own tables, and dtypes from a closed list. transformers is imported when a function here is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ..container.documents import FORBIDDEN_IN, FORBIDDEN_KEYS, with_floats
from ..errors import IncompatibleLibraryError, LoadError, told_by
from . import compat
from .limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Names in config.json and torch -> names here. No other dtype is accepted.
CONFIG_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
_NAMES_IN_CONFIG = {name: key for key, name in CONFIG_DTYPES.items()}
DEFAULT_DTYPE = "float32"  # transformers' own default for a config without a dtype

# Left out by every class: they say how a model is run or where its weights are or came from, not what it computes.
WITHOUT_EFFECT = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "_auto_class", "_output_attentions", "_flash_attn_2_enabled",
    "_post_init_done", "use_pretrained_backbone", "transformers_weights",
})  # fmt: skip
# Left out of documents already, where a file is written.
_FORBIDDEN = FORBIDDEN_KEYS | FORBIDDEN_IN["config.json"]
# Any key that ends so names an attribute of torch in some class.
_A_DTYPE = "dtype"
_DTYPES = frozenset({*CONFIG_DTYPES, "auto", "int8", "uint8", "int16", "int32", "int64", "bool"})
_FETCHED = re.compile(r"(hf[-_]hub|local-dir):")  # what timm takes for a place to get a model from


def dtype_name(config: Mapping[str, Any]) -> str:
    """Return the model's dtype as ``config.json`` names it: ``"bfloat16"``.

    Raises:
        LoadError: it is none of float32, float16, bfloat16, float64.
    """
    name = stated_dtype(config) or DEFAULT_DTYPE
    if not isinstance(name, str) or name.removeprefix("torch.") not in CONFIG_DTYPES:
        raise LoadError(f"config.json: dtype {name!r}, expected one of {', '.join(CONFIG_DTYPES)}")
    return name.removeprefix("torch.")


def stated_dtype(config: Mapping[str, Any]) -> Any:
    """Return what a parsed ``config.json`` has for the model's dtype; ``None`` where it leaves that to the weights."""
    inner = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else {}
    return config.get("dtype") or config.get("torch_dtype") or inner.get("dtype")  # type: ignore[union-attr]


def build_config(config: Mapping[str, Any], limits: Limits, dtype: str | None = None) -> PreTrainedConfig:
    """Build the transformers configuration from a parsed ``config.json``.

    Its dtype is ``dtype``, a name of ``aibit_format.dtypes``, or what the document says.

    Raises:
        LoadError: the installed transformers does not know the model type, or refuses a value; a value is beyond what
            the tensors can mean, or would be fetched; a key that is left out is one that the model reads.
        MissingPackageError: transformers is not installed.
    """
    model_type = config.get("model_type")
    family = compat.config_class(model_type)
    if family is None:
        raise LoadError(f"config.json: model type {model_type!r} is unknown to the installed transformers")
    limits.check(config)
    values, dropped = allowed(with_floats(config), family)
    _check_values(values)
    _check_read(family, dropped)
    stated = dtype_name(config)
    values["dtype"] = stated if dtype is None else _NAMES_IN_CONFIG[dtype]
    values.pop("torch_dtype", None)
    try:
        return family.from_dict(values)
    except Exception as error:  # many kinds of validators run inside
        raise LoadError(f"config.json: refused by {family.__name__}: {told_by(error)}") from error


def allowed(config: Mapping[str, Any], family: type[PreTrainedConfig]) -> tuple[dict[str, Any], list[str]]:
    """Return the part of ``config`` that reaches ``family`` and its sub-configurations, and the keys left out.

    Keys that no document of a file may have are left out, but not listed: the writer of the document does that.
    """
    inside = compat.sub_configs(family)
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in config.items():
        if key in _FORBIDDEN:
            continue
        if key in WITHOUT_EFFECT or not _is_data(family, key):
            dropped.append(key)
        elif key in inside and isinstance(value, Mapping):
            kept[key], lost = allowed(value, _sub_family(family, key, value))
            dropped += [f"{key}.{name}" for name in lost]
        else:
            kept[key] = value
    return kept, dropped


def dropped_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a parsed ``config.json`` that reach no configuration class, as ``allowed`` lists them."""
    family = compat.config_class(config.get("model_type"))
    return [] if family is None else allowed(config, family)[1]


def _is_data(family: type[PreTrainedConfig], key: str) -> bool:
    """Return whether a key is data of a configuration, and not a method or another part of its class."""
    if key in compat.declared(family):
        return True
    part = inspect.getattr_static(family, key, None)
    settable = isinstance(part, property) and part.fset is not None
    return part is None or settable or (isinstance(part, (str, list)) and not compat.is_of_all(key))


def _check_values(values: Any, path: str = "") -> None:
    """Raise LoadError for a value that transformers or timm would look up by its name, or fetch."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        items = values.items()
        if isinstance(values.get("backbone"), str) and values.get("backbone_config") is None:
            raise LoadError(
                f"config.json: {path}backbone is {values['backbone'][:80]!r}, whose configuration would be fetched; "
                "save the model with transformers 5, which writes it as backbone_config"
            )
    elif isinstance(values, list):
        items = enumerate(values)
    for key, value in items:
        here = f"{path}{key}"
        if isinstance(value, str):
            if str(key).endswith(_A_DTYPE) and value.removeprefix("torch.") not in _DTYPES:
                raise LoadError(f"config.json: {here} is {value[:80]!r}, expected one of {', '.join(CONFIG_DTYPES)}")
            if _FETCHED.match(value):
                raise LoadError(f"config.json: {here} is {value[:80]!r}, which would be fetched")
        else:
            _check_values(value, f"{here}.")


def _check_read(family: type[PreTrainedConfig], dropped: Iterable[str]) -> None:
    """Raise LoadError if the code of the models of ``family`` reads a key that it does not get."""
    names = {path.rpartition(".")[2]: path for path in dropped}
    for name in compat.mentioned(family, [name for name in names if name not in WITHOUT_EFFECT]):
        raise LoadError(
            f"config.json: {names[name]} is the name of a part of transformers' {family.__name__}, and its models "
            "read it: the value cannot be passed on; remove the key if the model is right without it"
        )


def _sub_family(family: type[PreTrainedConfig], key: str, value: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return a sub-configuration's class; if the parent says only "some configuration", its model type decides."""
    from transformers import AutoConfig

    stated = compat.sub_configs(family)[key]
    if stated is not AutoConfig:
        return stated
    model_type = value.get("model_type", compat.default_type(family, key))
    found = compat.config_class(model_type)
    if found is None:
        raise LoadError(f"config.json: {key}: model type {model_type!r} is unknown to the installed transformers")
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


def empty_model(
    config: PreTrainedConfig,
    architecture: str,
    limits: Limits,
    held: Iterable[str] | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Build a model without weights: every parameter on the meta device, every buffer real that can be computed.

    Of a class that can leave its pooling layer out it is built without it if that has weights, and ``held``, the names
    that a checkpoint has, are given and none of them is of that layer.

    ``attention`` is what transformers calls ``attn_implementation``; ``None`` leaves it to transformers.

    A buffer that neither its constructor fills with plain values nor ``from_pretrained`` computes is on the meta device
    too, and has to come from a file. Nothing of this is seen by other threads.

    Raises:
        LoadError: transformers has no such class for this configuration, it cannot be built from it, or would be far
            larger than its file; or the attention is not one that it can have without fetching a kernel.
    """
    import torch

    from . import construction, widths

    if attention is not None:
        _check_attention(config, attention)
    family, dtype = model_class(config, architecture), getattr(torch, str(config.dtype).removeprefix("torch."))
    try:
        # Tensors made in inference mode would count no writes.
        with torch.inference_mode(False), torch.no_grad():
            model = construction.build(family, config, dtype, limits, attention)
            widths.narrow(model, config)
            pooler = getattr(model, "pooler", None) if compat.pools_if_told(family) else None
            has_weights = pooler is not None and any(True for _ in pooler.parameters())
            if has_weights and held is not None and not any("pooler." in name for name in held):
                cast(Any, model).pooler = None
            with construction.zeros_in(construction.finish(model, dtype, limits.most_bytes)):
                construction.compute_buffers(model)
    except IncompatibleLibraryError:
        raise
    except Exception as error:  # of many kinds: what a config says reaches every part of a model
        raise LoadError(f"config.json: {architecture} cannot be built from it: {told_by(error)}") from error
    return model


def _check_attention(config: PreTrainedConfig, name: str) -> None:
    """Raise LoadError if transformers has no such attention, or would fetch code that computes it."""
    known = compat.attentions()
    if not isinstance(name, str) or name not in known:
        raise LoadError(f"attn_implementation={name!r}: transformers has {', '.join(known)}")
    if compat.fetches_attention(config, name):
        raise LoadError(
            f"attn_implementation={name!r}: its package is not installed, or the model wants another kernel, and none "
            "is fetched here: install it, or name another attention"
        )
