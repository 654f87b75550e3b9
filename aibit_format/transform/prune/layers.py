"""Knows the layers of a model: which modules they are, what a config says of each, and whether they stay what they are.

Nothing is known of an architecture. A model has as many layers as its config says, in one list of modules; if some are
left out, the others get new numbers, and lists in the config that have a value for each layer lose theirs. Whether the
model that this config describes has the same layers is then looked at, module by module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RecipeError
from ...hf.meta_model import MetaModel

_BY_LAYER = re.compile(r"layer|block|window|rope")  # in keys of lists with a value for each layer
_NUMBERS = frozenset({"mlp_only_layers", "full_attn_idxs", "cross_attention_layers", "attn_layer_indices"})
_LEADING = frozenset({"first_k_dense_replace", "num_dense_layers", "first_num_dense_layers"})  # so many from the first
_PLACES = re.compile(r"layer_(idx|number|id|index)$")  # attributes that count layers


def text_config(model: MetaModel) -> Any:
    """Return the configuration of the decoder."""
    return model.module.config.get_text_config()


def layer_list(model: MetaModel) -> tuple[str, int]:
    """Return the name of the list of a model's layers, and how many there are.

    Raises:
        RecipeError: there is no such list, or more than one.
    """
    from torch import nn

    config = text_config(model)
    count = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_encoder_decoder", False):
        raise RecipeError(f"{model.architecture} has an encoder and a decoder, whose layers have one number")
    found = [
        name
        for name, module in model.module.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and all(any(each.children()) for each in module)
    ]
    found = [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]
    if len(found) != 1 or not isinstance(count, int):
        raise RecipeError(f"{model.architecture} has {len(found)} lists of {count} layers, and one is needed to prune")
    return found[0], count


def layer_of(name: str, listed: str) -> tuple[int, str] | None:
    """Return the number of the layer that a parameter is in, and its name there; ``None`` if it is in none."""
    number, dot, rest = name.removeprefix(f"{listed}.").partition(".")
    return (int(number), rest) if name.startswith(f"{listed}.") and dot and number.isdigit() else None


def config_keys(model: MetaModel, said: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the keys of a config that change where only some layers are kept.

    Args:
        model: with all layers.
        said: what ``config.json`` says of the decoder.
        kept: the numbers of the layers that stay.
    """
    config, count = text_config(model), layer_list(model)[1]
    known = {**said, **{key: value for key, value in config.to_dict().items() if isinstance(value, list)}}
    changed: dict[str, Any] = {}
    for key, value in known.items():
        if key in _NUMBERS and isinstance(value, list):
            changed[key] = [kept.index(number) for number in value if number in kept]
        elif key in _LEADING and isinstance(value, int):
            changed[key] = sum(number < value for number in kept)
        elif isinstance(value, list) and len(value) == count and _BY_LAYER.search(key):
            changed[key] = [value[number] for number in kept]
    mapped = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    return {**changed, mapped: len(kept)}


def check_same(old: MetaModel, new: MetaModel, kept: Sequence[int], widths: bool) -> None:
    """Check that each layer is in the new model what it was in the old one.

    Args:
        kept: the number in the old model of each layer of the new one.
        widths: whether layers may have become narrower: numbers may be others then.

    Raises:
        RecipeError: names what a layer would do otherwise.
    """
    was, made = (dict(model.module.named_modules()) for model in (old, new))
    first, second = layer_list(old)[0], layer_list(new)[0]
    for place, number in enumerate(kept):
        before, after = (_settings(modules, f"{name}.{i}", widths) for modules, name, i in
                         ((was, first, number), (made, second, place)))  # fmt: skip
        if before != after:
            what = next(key for key in sorted({*before, *after}) if before.get(key) != after.get(key))
            raise RecipeError(
                f"layer {number} of {old.architecture} cannot become layer {place}: {what} is {before.get(what)} there "
                f"and {after.get(what)} here, which its place decides: keep other layers"
            )


def _settings(modules: Mapping[str, Any], layer: str, widths: bool) -> dict[str, Any]:
    """Return the types of a layer's modules and their settings, by name in the layer."""
    found: dict[str, Any] = {}
    for name, module in modules.items():
        if name != layer and not name.startswith(f"{layer}."):
            continue
        inside = name.removeprefix(layer)
        found[inside or "."] = type(module).__name__
        for key, value in vars(module).items():
            plain = value is None or isinstance(value, (bool, str, float)) or (isinstance(value, int) and not widths)
            if plain and not key.startswith("_") and not _PLACES.search(key):
                found[f"{inside}.{key}"] = value
    return found
