"""Defines llama.cpp's mixtures, such as ``q4_k_m``: which tensors of a model get more bits than the others.

A mixture has a type for most weights and rules for some of them. The rules are those of ``llama_tensor_get_type`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, without those for single architectures and sizes;
tensors are known by the names that transformers gives them. Unlike any other scheme, a mixture is also for the input
embeddings and the head. Routers stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..hf.meta_model import MetaModel
from ..schemes import Scheme, make


@dataclass(frozen=True)
class Place:
    """Describe where a tensor is: in which of the model's layers that have such a tensor, and in what model."""

    layer: int
    layers: int
    shared_heads: int  # heads of queries that share one of keys and values
    experts: int
    has_importance: bool


Rule = tuple[str, str, Callable[[Place], bool]]  # kind of tensor, type, where; the first that holds is taken


@dataclass(frozen=True)
class Preset:
    """Hold a mixture: the type of most weights, and rules."""

    usual: str
    rules: tuple[Rule, ...] = ()


def _always(_: Place) -> bool:
    return True


def _shares(place: Place) -> bool:
    return place.shared_heads >= 4


def _eight_experts(place: Place) -> bool:
    return place.experts == 8


def _more_bits(place: Place) -> bool:
    """Tell whether a layer is of the first or the last eighth, or every third between them."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


def _first(part: int) -> Callable[[Place], bool]:
    return lambda place: place.layer < place.layers // part


def _first_layers(count: int) -> Callable[[Place], bool]:
    return lambda place: place.layer < count


def _first_with(has_importance: bool) -> Callable[[Place], bool]:
    return lambda place: place.has_importance == has_importance and place.layer < place.layers // 8


_EXPERTS: tuple[Rule, ...] = (("attn_v", "q8_0", _eight_experts), ("attn_k", "q8_0", _eight_experts))
_OUTPUT: tuple[Rule, ...] = (("attn_output", "q5_k", _eight_experts),)
_IQ4: tuple[Rule, ...] = (
    *_EXPERTS, *_OUTPUT, ("attn_v", "q5_k", _shares), ("ffn_down", "q5_k", _first_with(False)),
)  # fmt: skip
_Q3_K_M = Preset("q3_k", (
    *_EXPERTS, *_OUTPUT, ("attn_v", "q5_k", _first_layers(2)), ("attn_v", "q4_k", _always),
    ("ffn_down", "q5_k", _first(16)), ("ffn_down", "q4_k", _always), ("attn_output", "q4_k", _always),
    ("attn_qkv", "q4_k", _always),
))  # fmt: skip
_Q4_K_M = Preset("q4_k", (
    *_EXPERTS, *_OUTPUT, ("attn_v", "q6_k", _more_bits), ("ffn_down", "q6_k", _more_bits),
    ("attn_qkv", "q5_k", _always),
))  # fmt: skip
_Q5_K_M = Preset("q5_k", (
    *_EXPERTS, ("attn_v", "q6_k", _more_bits), ("ffn_down", "q6_k", _more_bits), ("attn_qkv", "q6_k", _always),
))  # fmt: skip

PRESETS: dict[str, Preset] = {
    "q2_k": Preset("q2_k", (
        *_EXPERTS, *_OUTPUT, ("attn_v", "q4_k", _shares), ("attn_v", "q3_k", _always), ("ffn_down", "q3_k", _always),
        ("attn_output", "q3_k", _always),
    )),
    "q2_k_s": Preset("q2_k", (*_EXPERTS, ("attn_v", "q4_k", _shares), ("ffn_down", "q4_k", _first(8)))),
    "q3_k_s": Preset("q3_k", (*_EXPERTS, *_OUTPUT)),
    "q3_k_m": _Q3_K_M,
    "q3_k": _Q3_K_M,
    "q3_k_l": Preset("q3_k", (
        *_EXPERTS, ("attn_output", "q3_k", _eight_experts), ("attn_v", "q5_k", _always), ("ffn_down", "q5_k", _always),
        ("attn_output", "q5_k", _always), ("attn_qkv", "q4_k", _always),
    )),
    "q4_k_s": Preset("q4_k", (
        *_EXPERTS, *_OUTPUT, ("attn_v", "q5_k", _first_layers(4)), ("ffn_down", "q5_k", _first(8)),
    )),
    "q4_k_m": _Q4_K_M,
    "q4_k": _Q4_K_M,
    "q5_k_s": Preset("q5_k", _EXPERTS),
    "q5_k_m": _Q5_K_M,
    "q5_k": _Q5_K_M,
    "q6_k": Preset("q6_k", _EXPERTS),
    "iq4_nl": Preset("iq4_nl", _IQ4),
    "iq4_xs": Preset("iq4_xs", _IQ4),
    "q4_0": Preset("q4_0", (*_EXPERTS, ("ffn_down", "q4_1", _first_with(True)))),
    "q4_1": Preset("q4_1", _EXPERTS),
    "q5_0": Preset("q5_0", (*_EXPERTS, ("ffn_down", "q5_1", _first_with(True)))),
    "q5_1": Preset("q5_1", _EXPERTS),
    "q8_0": Preset("q8_0"),
}  # fmt: skip

# What kind a weight is, by its name; the first that is found.
_KINDS = tuple((kind, re.compile(pattern)) for kind, pattern in (
    ("router", r"\.(gate|router|shared_expert_gate)\.weight$"),
    ("attn_qkv", r"\.(qkv|qkv_proj|c_attn|query_key_value|Wqkv)\.weight$"),
    ("attn_v", r"\.(v_proj|value|v_lin|v)\.weight$"),
    ("attn_k", r"\.(k_proj|key|k_lin|k)\.weight$"),
    ("attn_output", r"(?i:attn|attention)\.(o_proj|out_proj|out_lin|dense|c_proj|o|wo|output\.dense)\.weight$"),
    ("ffn_down", r"\.(down_proj|fc2|w2|c_proj|dense_4h_to_h|lin2|fc_out|wo|output\.dense)(\.weight)?$"),
))  # fmt: skip
_LAYER = re.compile(r"(.*?\.\d+)\.")
_HEADS = ("num_key_value_heads", "num_attention_heads")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


def assignments(name: str, model: MetaModel, has_importance: bool) -> dict[str, Scheme]:
    """Return the scheme of each weight of a model that a preset is for, by the tensor's name.

    Whether the scheme can hold the tensor is not looked at.

    Args:
        name: of the preset.
        model: whose weights they are.
        has_importance: whether columns have an importance, by which llama.cpp decides some types.
    """
    preset = PRESETS[name]
    ends = _ends(preset, model)
    kinds = {
        key: _kind(key)
        for key, parameter in model.parameters.items()
        if parameter.role in ("linear", "conv1d", "experts") and key not in ends
    }
    found = {key: make(f"gguf:{kind}") for key, kind in ends.items()}
    shared_heads, experts = _counts(model.module.config)
    for kind in set(kinds.values()) - {"router"}:
        keys = [key for key in kinds if kinds[key] == kind]
        layers = {layer: i for i, layer in enumerate(dict.fromkeys(map(_layer, keys)))}
        for key in keys:
            place = Place(layers[_layer(key)], len(layers), shared_heads, experts, has_importance)
            rules = (then for of, then, where in preset.rules if of == kind and where(place))
            found[key] = make(f"gguf:{next(rules, preset.usual)}")
    return found


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "")


def _layer(name: str) -> str:
    """Return what a name begins with, to the number of its layer."""
    found = _LAYER.match(name)
    return found[1] if found else ""


def _ends(preset: Preset, model: MetaModel) -> dict[str, str]:
    """Return the types of the input embeddings and of the head, which embeddings may be tied to, by their names."""
    module = model.module
    parameters: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    names = {id(value): model.ties.get(key, key) for key, value in parameters.items()}
    inputs, head = (_weight(get, names) for get in (module.get_input_embeddings, module.get_output_embeddings))
    of_head = "q8_0" if preset.usual == "q8_0" else "q6_k"
    found = {inputs: preset.usual, head: of_head}  # the same if they are tied
    return {key: kind for key, kind in found.items() if key in model.parameters}


def _weight(get: Callable[[], Any], names: dict[int, str]) -> str:
    """Return the name of the weight of a model's input or output embeddings; empty if it has none."""
    try:
        return names.get(id(getattr(get(), "weight", None)), "")
    except (AttributeError, NotImplementedError):
        return ""


def _counts(config: Any) -> tuple[int, int]:
    """Return how many heads of queries share one of keys and values, and how many experts a layer has."""
    config = config.get_text_config()
    keys, queries = (next(_whole_numbers(config, [name]), 0) for name in _HEADS)
    return queries // keys if keys else 1, next(_whole_numbers(config, _EXPERT_COUNTS), 0)


def _whole_numbers(config: Any, names: tuple[str, ...] | list[str]) -> Iterator[int]:
    return (value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0)
