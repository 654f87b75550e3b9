"""Lets transformers save a loaded model whose weights have no layer of bitsandbytes: it writes their values.

``save_pretrained`` writes what a state dict has, and of these modules that is planes. transformers would find no
weights in them, and fill in random ones. ``convert`` takes the planes of a loaded model as they are, and ``aibit
export`` writes the values of a file one tensor at a time; here all are decoded at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import LoadError
from ...hf.compat import replaced_conv1d
from ..bnb_compat import Linear4bit, Linear8bitLt
from ..layers.dequantized import Quantized

_saving: ContextVar[bool] = ContextVar("saving", default=False)


def let_save(model: PreTrainedModel) -> None:
    """Make ``save_pretrained`` of a model, and of the models in it, write a directory that transformers loads."""
    quantized = [module for module in model.modules() if isinstance(module, Quantized)]
    for module in quantized:
        module.register_state_dict_post_hook(_decode)
    if quantized or all(any(isinstance(m, kind) for m in model.modules()) for kind in (Linear8bitLt, Linear4bit)):
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.save_pretrained = partial(_save, module)  # type: ignore[method-assign]


def _save(
    model: PreTrainedModel,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Save as transformers does, values in the place of planes; takes the place of ``save_pretrained``.

    Raises:
        LoadError: the model has 8-bit and 4-bit layers of bitsandbytes, of which transformers can load one kind.
    """
    modules = dict(model.named_modules())
    if all(any(isinstance(module, kind) for module in modules.values()) for kind in (Linear8bitLt, Linear4bit)):
        raise LoadError(
            "save_pretrained: the model has 8-bit and 4-bit layers, and transformers loads one kind. "
            "aibit export FILE --to huggingface --dequantize writes the values of the fewer ones"
        )
    token = _saving.set(True)
    try:
        if state_dict is not None:  # such as Trainer hands over: it has the planes
            state_dict = dict(state_dict)
            for name, module in modules.items():
                if isinstance(module, Quantized) and any(key.startswith(f"{name}.") for key in state_dict):
                    _decode(module, state_dict, f"{name}.", None)
        return type(model).save_pretrained(model, save_directory, is_main_process, state_dict, *args, **kwargs)
    finally:
        _saving.reset(token)


def _decode(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the planes of a module in a state dict by its weight, while a model is being saved."""
    if not _saving.get() or not isinstance(module, Quantized):
        return
    for role in module.planes():
        state.pop(prefix + role, None)
    weight = module.weight.detach()
    # GPT-2's Conv1D has the transpose of what is stored.
    state[(prefix + module.leaf).removesuffix(".")] = weight.T.contiguous() if replaced_conv1d(module) else weight
