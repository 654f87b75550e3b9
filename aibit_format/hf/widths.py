"""Builds models whose layers have different widths, which transformers' configs have no words for.

``config.json`` has the key ``aibit_widths`` then: for ``channels`` and ``heads`` (of keys and values), how many each
layer has. The keys of transformers have the largest of them. Where it is missing, nothing here does anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import LoadError

KEY = "aibit_widths"
# Kind -> the key that has the largest, modules that have a row for each, and modules that have a column.
KINDS = {
    "channels": ("intermediate_size", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
    "heads": (
        "num_key_value_heads", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)
    ),
}  # fmt: skip
_MODULE = re.compile(r"(?:.*\.)?layers\.(\d+)\.((?:mlp|self_attn)\.\w+)")


def narrow(model: Any, config: Any) -> None:
    """Give the layers of a model on the meta device the widths that its configuration states.

    Raises:
        LoadError: it states others than a model can have.
    """
    text = config.get_text_config()
    stated = getattr(text, KEY, None)
    if stated is None:
        return
    widths = _checked(stated, text)
    found: dict[str, set[tuple[int, bool]]] = {kind: set() for kind in widths}
    for name, module in model.named_modules():
        place = _MODULE.fullmatch(name)
        if place is None:
            continue
        for kind, counts in widths.items():
            key, rows, columns = KINDS[kind]
            if place[2] in (*rows, *columns):
                number = int(place[1])
                _narrow(module, place[2] in rows, counts[number], getattr(text, key))
                found[kind].add((number, place[2] in rows))
    for kind, layers in found.items():
        if len(layers) != 2 * len(widths[kind]):  # something writes them and something reads them
            raise LoadError(f"config.json: {KEY}: {kind}: {type(model).__name__} has no layers whose {kind} are known")


def _checked(stated: Any, config: Any) -> dict[str, list[int]]:
    count = config.num_hidden_layers
    if not isinstance(stated, Mapping) or not set(stated) <= set(KINDS):
        raise LoadError(f"config.json: {KEY}: an object of {', '.join(KINDS)} is needed")
    for kind, counts in stated.items():
        most = getattr(config, KINDS[kind][0])
        plain = isinstance(counts, list) and all(type(each) is int and 0 < each <= most for each in counts)
        if not plain or len(counts) != count:
            raise LoadError(
                f"config.json: {KEY}: {kind}: {count} numbers from 1 to {most} are needed, one for each layer"
            )
    return dict(stated)


def _narrow(module: Any, is_row: bool, count: int, most: int) -> None:
    import torch

    def smaller(value: torch.Tensor, axis: int) -> torch.nn.Parameter:
        shape = list(value.shape)
        shape[axis] = shape[axis] // most * count
        return torch.nn.Parameter(value.new_empty(shape), requires_grad=value.requires_grad)

    module.weight = smaller(module.weight, 0 if is_row else 1)
    module.out_features, module.in_features = module.weight.shape
    if is_row and module.bias is not None:
        module.bias = smaller(module.bias, 0)
