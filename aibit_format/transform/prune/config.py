"""Writes the config of a smaller model: a plain one, which says no more than that there is less."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import RecipeError
from ...hf.meta_model import MetaModel
from ...hf.widths import KEY as UNEVEN
from .hidden import hidden_keys
from .layers import config_keys, text_config
from .plan import Numbers, Plan
from .widths import CHANNELS, CHANNELS_OF_EXPERTS, EXPERTS, Layer, config_key, layers_of


def pruned_config(model: MetaModel, config: Mapping[str, Any], plan: Plan, kept: Sequence[int]) -> bytes:
    """Return ``config.json`` of what a plan keeps of a model.

    Args:
        model: that is pruned.
        config: its parsed ``config.json``.
        plan: what is kept.
        kept: the numbers of the layers that are.

    Raises:
        RecipeError: a kind has another width in each layer, which no config can say.
    """
    inner = None if text_config(model) is model.module.config else "text_config"
    said = config.get(inner, {}) if inner else config
    keys = _widths(model, said, plan, kept)
    if plan.hidden is not None:
        keys = hidden_keys(model, said, len(plan.hidden)) | keys
    if plan.layers is not None:
        keys |= config_keys(model, said, kept)
    if UNEVEN not in keys and isinstance(said.get(UNEVEN), dict):
        keys[UNEVEN] = {kind: [counts[number] for number in kept] for kind, counts in said[UNEVEN].items()}
    changed = {key: value for key, value in {**said, **keys}.items() if key != UNEVEN or value}
    whole = {**config, inner: changed} if inner else changed
    return (json.dumps(whole, indent=2) + "\n").encode()


def _widths(model: MetaModel, said: Mapping[str, Any], plan: Plan, kept: Sequence[int]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if not plan.widths:
        return keys
    config, layers = text_config(model), layers_of(model)
    first = layers[kept[0]]
    if plan.channels:
        some = layers[next(number for number in kept if number in plan.channels)]
        names = CHANNELS_OF_EXPERTS if some.experts else CHANNELS
        keys |= _channels(config_key(config, said, names), layers, plan, kept)
    if plan.experts:
        count = _same("experts", plan.experts, kept)
        routed = getattr(config, "num_experts_per_tok", None)
        if isinstance(routed, int) and routed > count:
            raise RecipeError(f"{count} experts to keep, and each token goes to {routed}")
        keys[config_key(config, said, EXPERTS)] = count
    if plan.heads:
        count = _same("heads", plan.heads, kept)
        keys["num_key_value_heads"] = count
        keys["num_attention_heads"] = count * (first.heads // first.groups)
        keys["head_dim"] = first.size
        hidden = config.hidden_size if plan.hidden is None else len(plan.hidden)
        if hidden % keys["num_attention_heads"]:
            _check_heads(model, config, keys)
    return keys


def _channels(key: str, layers: Mapping[int, Layer], plan: Plan, kept: Sequence[int]) -> dict[str, Any]:
    """Return the keys that say how many channels layers have: one number, or one for each layer."""
    if layers[kept[0]].experts or layers[kept[-1]].experts:
        return {key: _same("channels", plan.channels, kept)}
    counts = [len(plan.channels[number]) if number in plan.channels else layers[number].count for number in kept]
    return {key: max(counts), UNEVEN: None if len(set(counts)) == 1 else {"channels": counts}}


def _same(kind: str, numbers: Numbers, kept: Sequence[int]) -> int:
    counts = {int(np.shape(numbers[number])[-1]) for number in kept if number in numbers}
    if len(counts) != 1:
        raise RecipeError(f"{kind}: {sorted(counts)} in different layers, which no transformers config can say")
    return counts.pop()


def _check_heads(model: MetaModel, config: Any, keys: Mapping[str, int]) -> None:
    """Raise RecipeError if a configuration class does not take heads that the hidden size is no multiple of."""
    values = {**config.to_dict(), **keys}
    try:
        type(config).from_dict(values)
    except Exception as error:  # validators of many kinds
        heads = model.module.config.get_text_config().num_attention_heads
        fitting = [n for n in range(1, heads) if not config.hidden_size % n]
        raise RecipeError(
            f"{keys['num_attention_heads']} heads: {type(config).__name__} takes a hidden size of {config.hidden_size} "
            f"with {', '.join(map(str, fitting))} heads alone"
        ) from error
