"""Records what a decoder computes, by ``torch.export``, as a program of ``graph``.

The model is exported with layers that name their weights, a cache that keeps nothing and an attention that says what
it is asked for: so the export has neither weights, nor a cache, nor a mask. ``translate`` makes a program of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicLayer, PreTrainedModel

from ..._version import __version__
from ...errors import GraphError, told_by
from ...graph.program import MAX_POSITIONS, Program
from ...hf.compat import attention_of
from ...hf.context import context_of
from ..bnb_compat import Linear4bit, Linear8bitLt
from ..layers.dequantized import Quantized, QuantizedEmbedding
from ..layers.experts import QuantizedExperts
from ..layers.norms import RMSNorm
from . import custom_ops
from .encoder import encoder_of
from .translate import translate

_NAME = "aibit-graph"  # among transformers' ways of attention
_TOKENS = 5  # of the example; any number that is no other size
_PLAIN_OPTIONS = {
    "dropout",
    "scaling",
    "sliding_window",
    "softcap",
    "position_ids",
    "is_causal",
    "use_cache",
    "cache_position",
}


def record(model: PreTrainedModel, positions: int | None = None) -> Program:
    """Record what a decoder or an encoder computes for a sequence: logits, or states of a model without a head.

    Args:
        model: as ``load_model`` gives it, on a CPU. It is as it was afterwards.
        positions: how many a sequence has at most; None: the model's context.

    Raises:
        GraphError: the model cannot be recorded; says why.
    """
    most = positions or context_of(model.config) or MAX_POSITIONS
    if model.config.is_encoder_decoder:
        raise GraphError(f"{type(model).__name__} has an encoder and a decoder; a graph is one of them")
    recorded = _Recorded(model) if model.can_generate() else encoder_of(model)
    if any(isinstance(module, QuantizedExperts) for module in model.modules()):
        raise GraphError(f"{type(model).__name__} has experts, which are chosen by numbers and not by shapes")
    tokens = torch.export.Dim("tokens", min=2, max=max(most, 4 * _TOKENS))
    ids, places = torch.zeros(1, _TOKENS, dtype=torch.long), torch.arange(_TOKENS)[None]
    with _recording(model), torch.no_grad():
        try:
            exported = torch.export.export(
                recorded, (ids, places), dynamic_shapes={"ids": {1: tokens}, "positions": {1: tokens}},
                strict=False,
            )  # fmt: skip
        except GraphError:
            raise
        except Exception as error:  # whatever a model's code does with numbers
            raise GraphError(f"torch.export cannot record {type(model).__name__}: {told_by(error)}") from error
    versions = {"aibit-format": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return translate(exported, most, versions)


class _Recorded(nn.Module):
    """Computes logits from ids and positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cache = Cache(layer_class_to_replicate=_Nothing)
        return self.model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits


class _Nothing(DynamicLayer):
    """Keeps nothing of what a layer caches."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


class _NamedLinear(nn.Module):
    def __init__(self, name: str, features: int, bias: Any) -> None:
        super().__init__()
        self.name, self.features, self.bias = name, features, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return custom_ops.linear(x, self.name, self.features, self.bias)


class _NamedEmbedding(nn.Module):
    def __init__(self, name: str, layer: QuantizedEmbedding) -> None:
        super().__init__()
        self.name, self.columns, self.dtype = name, layer.embedding_dim, layer.logical_dtype
        self.scale = layer.embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = custom_ops.embedding(ids, self.name, self.columns, self.dtype)
        if self.scale is None:
            return found
        return found * (self.scale.to(found.dtype) if isinstance(self.scale, torch.Tensor) else self.scale)


class _NamedNorm(nn.Module):
    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps, self.form = norm.weight, norm.eps, norm.form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return custom_ops.rms_norm(x, self.weight, self.eps, self.form.offset, self.form.rounds)


def _named(name: str, module: nn.Module) -> nn.Module | None:
    """Return what stands for a layer while a model is recorded; None: the layer itself."""
    if isinstance(module, QuantizedEmbedding):
        return _NamedEmbedding(f"{name}.weight", module)
    if isinstance(module, Quantized | Linear4bit | Linear8bitLt):
        features: Any = module.out_features
        return _NamedLinear(f"{name}.weight", features, module._parameters.get("bias", getattr(module, "bias", None)))
    return _NamedNorm(module) if isinstance(module, RMSNorm) else None


@contextmanager
def _recording(model: PreTrainedModel) -> Iterator[None]:
    """Give a model layers that name their weights, and the attention that is recorded; take them back at the end."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
    replaced: dict[str, nn.Module] = {}
    before = attention_of(model)
    for name, module in list(model.named_modules()):
        if (stand_in := _named(name, module)) is not None:
            replaced[name] = module
            model.set_submodule(name, stand_in)
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        for name, module in replaced.items():
            model.set_submodule(name, module)
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Say what a layer's attention is; a kind of attention that a graph has no words for cannot be recorded."""
    unknown = {key for key, value in options.items() if value is not None and key not in _PLAIN_OPTIONS}
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    beyond = unknown or attention_mask is not None or options.get("dropout")
    if not causal and not beyond and not options.get("sliding_window"):
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return custom_ops.full_attention(query, key, value, float(scale), float(options.get("softcap") or 0.0)), None
    if beyond or not causal:
        what = ", ".join(sorted(unknown)) or "a mask, dropout, or a window in both directions"
        raise GraphError(f"attention of {type(module).__name__} has what a graph does not say: {what}")
    scale, layer = options.get("scaling"), getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise GraphError(f"{type(module).__name__} does not say which layer it is")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window, cap = options.get("sliding_window") or 0, options.get("softcap") or 0.0
    return custom_ops.attention(query, key, value, layer, float(scale), int(window), float(cap)), None
