"""Defines the architectures that both GGUF and transformers know: names of tensors, keys of configs, order of rows.

Each has one ``Family``, which the source and the exporter use in opposite directions.
Facts are those of llama.cpp's ``convert_hf_to_gguf.py`` and of the models in transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import SourceError
from . import rope

ROPE_FACTORS = "rope_freqs.weight"  # not a weight: the frequency factors of llama3 scaling
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")
_OUTER = re.compile(r"([a-z_]+)\.(weight|bias)")


@dataclass(frozen=True)
class Family:
    """Describe one architecture on both sides.

    ``outer`` and ``inner`` map GGUF's names to transformers', outside and inside a layer; ``integers`` and ``floats``
    map GGUF's keys, without the architecture's name in front, to those of ``config.json``. ``biases`` maps the names
    that may have a bias to the key of ``config.json`` that gives one to all names of that key, or to ``""`` where it is
    always there.
    """

    gguf: str
    model_type: str
    architecture: str
    layer: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    integers: Mapping[str, str]
    floats: Mapping[str, str]
    biases: Mapping[str, str]
    conv1d: frozenset[str] = frozenset()  # inner weights that transformers keeps as [in, out]
    permuted: Mapping[str, str] = field(default_factory=dict)  # inner name -> GGUF's key of its number of heads
    rope: bool = True

    def hugging_face(self, name: str) -> str | None:
        """Return transformers' name for a tensor of GGUF, or ``None`` if the model has no such tensor."""
        if found := _BLOCK.fullmatch(name):
            stem = self.inner.get(found[2])
            return stem and f"{self.layer.format(found[1])}{stem}.{found[3]}"
        if found := _OUTER.fullmatch(name):
            stem = self.outer.get(found[1])
            return stem and f"{stem}.{found[2]}"
        return None

    def names(self, layers: int) -> dict[str, str]:
        """Map transformers' names to GGUF's, for every tensor that such a model can have."""
        stems = {stem: f"{name}" for name, stem in self.outer.items()}
        for i in range(layers):
            stems |= {f"{self.layer.format(i)}{stem}": f"blk.{i}.{name}" for name, stem in self.inner.items()}
        return {f"{stem}.{end}": f"{name}.{end}" for stem, name in stems.items() for end in ("weight", "bias")}

    def is_conv1d(self, name: str) -> bool:
        """Tell whether transformers holds the transpose of this tensor of GGUF."""
        found = _BLOCK.fullmatch(name)
        return bool(found and found[3] == "weight" and found[2] in self.conv1d)

    def heads_key(self, name: str) -> str | None:
        """Return GGUF's key for the number of heads whose rows llama.cpp reorders in this tensor of GGUF, if any."""
        found = _BLOCK.fullmatch(name)
        return self.permuted.get(found[2]) if found else None


def gguf_rows(rows: int, heads: int) -> np.ndarray:
    """Return for each row of GGUF its row in transformers, i64 [rows].

    transformers rotates dimension i of a head with dimension i + d / 2, llama.cpp's llama with its neighbour.
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def hugging_face_rows(rows: int, heads: int) -> np.ndarray:
    """Return for each row of transformers its row in GGUF, i64 [rows]."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


_OUTER_LLAMA = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER_LLAMA = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_INTEGERS_LLAMA = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
_FLOATS_LLAMA = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_BIASES_LLAMA = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention_bias"),
    **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "mlp_bias"),
}

FAMILIES = {
    family.gguf: family
    for family in (
        Family(
            "llama", "llama", "LlamaForCausalLM", "model.layers.{}.", _OUTER_LLAMA, _INNER_LLAMA, _INTEGERS_LLAMA,
            _FLOATS_LLAMA, _BIASES_LLAMA,
            permuted={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
        ),
        Family(
            "qwen2", "qwen2", "Qwen2ForCausalLM", "model.layers.{}.", _OUTER_LLAMA, _INNER_LLAMA, _INTEGERS_LLAMA,
            _FLOATS_LLAMA, dict.fromkeys(("attn_q", "attn_k", "attn_v"), ""),
        ),
        Family(
            "gpt2", "gpt2", "GPT2LMHeadModel", "transformer.h.{}.",
            {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
             "output": "lm_head"},
            {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
             "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
            {"context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
             "feed_forward_length": "n_inner", "attention.head_count": "n_head"},
            {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
            dict.fromkeys(
                ("output_norm", "attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"), ""
            ),
            conv1d=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}), rope=False,
        ),
    )
}  # fmt: skip
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES.values()}

# Keys that make llama.cpp compute something that transformers' model does not, and their harmless values.
_UNKNOWN = {
    "expert_count": (0,), "logit_scale": (1.0, 0.0), "embedding_scale": (1.0, 0.0), "residual_scale": (1.0, 0.0),
    "attention.scale": (1.0, 0.0), "attention.sliding_window": (0,), "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,), "attention.clamp_kqv": (0.0,),
}  # fmt: skip


class Keys:
    """Look up the metadata of one architecture, by keys without its name."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        start = architecture + "."
        self.values = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
        self._prefix = start

    def integer(self, key: str, otherwise: int | None = None) -> int:
        """Return a positive integer, or ``otherwise`` if the key is missing.

        Raises:
            SourceError: it is missing without a default, or it is something else, such as one value per layer.
        """
        value = self.values.get(key, otherwise)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise SourceError(f"{self._prefix}{key} is {_brief(value)}, one positive number is needed")
        return value

    def number(self, key: str) -> float:
        """Return a finite number, as the shortest decimal of its float32; raises SourceError for anything else."""
        value = self.values.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise SourceError(f"{self._prefix}{key} is {_brief(value)}, a number is needed")
        return float(str(np.float32(value)))

    def rope(self) -> dict[str, Any]:
        """Return the values of the keys that begin with ``rope.``, without that prefix."""
        found = {key.removeprefix("rope."): value for key, value in self.values.items() if key.startswith("rope.")}
        for key in found:
            if key == "scaling.type":
                if not isinstance(found[key], str):
                    raise SourceError(f"{self._prefix}rope.{key} is {_brief(found[key])}, a word is needed")
            elif not isinstance(found[key], bool):
                self.number(f"rope.{key}")
        return found


def config_of(
    family: Family, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: np.ndarray | None
) -> dict[str, Any]:
    """Make ``config.json``, except ``dtype``, from GGUF's metadata and tensors.

    Args:
        family: the architecture.
        metadata: of the file.
        shapes: of the tensors, by GGUF's names.
        factors: f32, the values of ``rope_freqs.weight`` if the file has it.

    Raises:
        SourceError: transformers' model cannot represent what the file describes; the message says why.
    """
    keys = Keys(metadata, family.gguf)
    for key, harmless in _UNKNOWN.items():
        value = keys.values.get(key, harmless[0])
        if not isinstance(value, (int, float)) or value not in harmless:
            raise SourceError(f"{family.gguf}.{key} is {_brief(value)}: {family.architecture} has no such thing")
    for name in shapes:
        if name != ROPE_FACTORS and family.hugging_face(name) is None:
            raise SourceError(f"tensor {name!r} has no place in {family.architecture}")
    embedding = shapes.get("token_embd.weight", ())
    layers = keys.integer("block_count")
    if len(embedding) != 2 or layers > len(shapes):
        raise SourceError(f"{layers} layers and embeddings of {list(embedding)} in a file of {len(shapes)} tensors")
    heads = keys.integer("attention.head_count")
    keys.values.setdefault("attention.head_count_kv", heads)
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    config |= {theirs: keys.integer(ours) for ours, theirs in family.integers.items()}
    config |= {theirs: keys.number(ours) for ours, theirs in family.floats.items()}
    config["vocab_size"] = embedding[0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config |= _biases(family, shapes, layers)
    if family.gguf == "gpt2":
        return config
    width = config["hidden_size"]
    head_dim = keys.integer("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise SourceError(f"{family.gguf}.{key} is {keys.values[key]}, the heads have {head_dim} dimensions")
    if family.gguf == "llama":
        config["head_dim"] = head_dim
    elif head_dim * heads != width:
        raise SourceError(f"{heads} heads of {head_dim} dimensions in a model {width} wide")
    for name, shape in shapes.items():
        key = family.heads_key(name)
        if key and (
            len(shape) != (1 if name.endswith(".bias") else 2)  # the blocks of a vector would pass for rows
            or head_dim % 2
            or shape[0] != keys.integer(key) * head_dim
        ):
            found = f"tensor {name!r} has shape {list(shape)}"
            raise SourceError(f"{found}, for {keys.integer(key)} heads of {head_dim}")
    config["rope_parameters"] = rope.from_gguf(keys.rope(), factors, config["max_position_embeddings"])
    return config


def _biases(family: Family, shapes: Mapping[str, tuple[int, ...]], layers: int) -> dict[str, bool]:
    """Return the keys of ``config.json`` that give biases to several tensors: each has all of its biases, or none.

    Raises:
        SourceError: some are there and others are not, or a tensor has a bias that transformers' model lacks.
    """
    found: dict[str, bool] = {}
    wanted: dict[str, str] = {}  # name of a bias -> key
    for name, key in family.biases.items():
        blocks = [f"blk.{i}.{name}.bias" for i in range(layers)] if name in family.inner else [f"{name}.bias"]
        wanted |= dict.fromkeys(blocks, key)
    for name in shapes:
        if name.endswith(".bias") and name not in wanted:
            raise SourceError(f"tensor {name!r}: {family.architecture} has no such bias")
    for name, key in wanted.items():
        if found.setdefault(key, name in shapes or not key) != (name in shapes):
            there = f"{key} is all of them or none" if key else "it has all of them"
            raise SourceError(f"biases of {family.architecture}: {there}, but {name!r} is {_THERE[name in shapes]}")
    return {key: value for key, value in found.items() if key}


_THERE = {True: "there", False: "missing"}


def keys_of(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Make GGUF's metadata of the architecture, as ``int``, ``float`` and ``str``, from a ``config.json``.

    Raises:
        SourceError: the config asks for something that llama.cpp's model lacks.
    """
    _check_config(family, config)
    values: dict[str, Any] = {}
    defaults = {"num_key_value_heads": config.get("num_attention_heads"), "n_inner": 4 * config.get("n_embd", 0)}
    for ours, theirs in family.integers.items():
        values[ours] = config.get(theirs) or defaults.get(theirs)
    for ours, theirs in family.floats.items():
        values[ours] = config.get(theirs)
    for ours, theirs in {**family.integers, **family.floats}.items():
        if type(values[ours]) is not (int if ours in family.integers else float) or values[ours] <= 0:
            raise SourceError(f"config.json: {theirs} is {_brief(config.get(theirs))}, a positive number is needed")
    if family.rope:
        head_dim = head_dim_of(config)
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
        values |= {"rope.dimension_count": head_dim, "vocab_size": config["vocab_size"]}
        values |= {f"rope.{key}": value for key, value in rope.to_gguf(rope.parameters_of(config)).items()}
    return {f"{family.gguf}.{key}": value for key, value in values.items()}


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Return the number of dimensions of a head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


# Keys of a config with which llama.cpp would compute something else, and their harmless values.
_UNKNOWN_TO_GGUF = {
    "hidden_act": ("silu",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "use_sliding_window": (False,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0, 1), "pretraining_tp": (1, 0),
}  # fmt: skip


def _check_config(family: Family, config: Mapping[str, Any]) -> None:
    for key, harmless in _UNKNOWN_TO_GGUF.items():
        if config.get(key) is not None and config[key] not in harmless:
            raise SourceError(f"config.json: {key} {_brief(config[key])}: llama.cpp's {family.gguf} has no such thing")


def _brief(value: Any) -> str:
    if value is None:
        return "missing"
    return f"a list of {len(value)}" if isinstance(value, (list, np.ndarray)) else repr(value)[:60]
