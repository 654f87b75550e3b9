"""Matches the tensors of a checkpoint to those of a model, and makes those that a checkpoint need not have."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .compat import fill, inside, of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class CheckpointNames:
    """Turn names of a checkpoint into names of a model, as transformers does when it loads the checkpoint."""

    def __init__(self, model: PreTrainedModel) -> None:
        renaming, converter = inside("WeightRenaming"), inside("WeightConverter")
        for method in ("add_tensor", "convert"):  # callers use them on ``converters``
            inside(f"WeightConverter.{method}")
        mapping = inside("get_model_conversion_mapping")(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, renaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, converter)]
        self._prefix, self._state = model.base_model_prefix, model.state_dict()
        self._rename = inside("rename_source_key")
        # The converters that join or split tensors, by the pattern that ``rename`` returns.
        self.converters: dict[str, Any] = {
            pattern: entry for entry in self._converters for pattern in entry.source_patterns
        }

    def rename(self, name: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the converter that makes the tensor, or ``None``."""
        return self._rename(name, self._renamings, self._converters, self._prefix, self._state)

    def experts(self, name: str) -> list[str]:
        """Return the names in a checkpoint of the weights that a fused tensor is stacked from; none if it is not.

        ``*`` stands for the number of the expert. The rows of the weights follow one another in this order.
        """
        for converter in filter(stacks, self._converters):
            (target,) = converter.target_patterns
            parts = [name.replace(target, pattern) for pattern in converter.source_patterns]
            if target in name and all(self.rename(part.replace("*", "0"))[0] == name for part in parts):
                return parts
        return []


# Operations that stack the weights of experts along a new first dimension, alone or before they concatenate rows.
_STACKS = ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def stacks(converter: Any) -> bool:
    """Tell whether a converter does nothing but stack the weights of experts, [N, K] each, and concatenate rows."""
    operations = [(type(each).__name__, getattr(each, "dim", None)) for each in converter.operations]
    return operations in _STACKS and len(converter.target_patterns) == 1


# Buffers of old checkpoints: the expressions of ``PreTrainedModel._adjust_missing_and_unexpected_keys``.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")


def not_used_on_purpose(model: PreTrainedModel) -> Callable[[str], bool]:
    """Return a function that tells whether a model does not use a tensor of its checkpoints because it needs not.

    Either the class lists it, or it is a buffer that the constructor computes.
    """
    listed = of(model, "PreTrainedModel", "_keys_to_ignore_on_load_unexpected")
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in (*sorted(listed or ()), *_OLD_BUFFERS)))
    buffers = {name for name, _ in model.named_buffers()}
    return lambda name: name in buffers or expression.search(name) is not None


def derived(model: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Compute those of the named parameters that a checkpoint may lack, as the model fills them itself.

    They are those that the class lists and that are no random numbers, such as sinusoidal positions.
    """
    import torch

    listed = of(model, "PreTrainedModel", "_keys_to_ignore_on_load_missing") or ()
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in (*sorted(listed), *_TRAINED_WITH)))
    found = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name in filter(expression.search, names):
            first, second = _initial(model, name), _initial(model, name)
            if re.search(_TRAINED_WITH[0], name):
                found[name] = torch.zeros_like(first)
            elif torch.equal(first, second):  # neither random nor left as it was, which is NaN
                found[name] = first
    return found


# Parameters that stand for masked inputs in training, and are not used else; many checkpoints lack them.
_TRAINED_WITH = (r"(^|\.)masked_spec_embed$",)


def _initial(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Return a parameter as transformers fills it where a checkpoint lacks it."""
    from transformers import PreTrainedModel

    owner, _, leaf = name.rpartition(".")
    path = [model, *(model.get_submodule(owner[:end]) for end in _ends(owner))]
    filling: Any = next(module for module in reversed(path) if isinstance(module, PreTrainedModel))
    module = copy.copy(path[-1])
    module._parameters = {
        key: None if value is None else type(value)(value.new_full(value.shape, float("nan"), device="cpu"), False)
        for key, value in module._parameters.items()
    }
    fill(filling, module)
    return module._parameters[leaf].data  # type: ignore[union-attr]


def _ends(path: str) -> list[int]:
    """Return where the parts of a module's path end: 5 and 11 in ``"model.layers"``."""
    return [place for place, letter in enumerate(path + ".") if letter == "." and place]
