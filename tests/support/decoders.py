"""Small decoders of every family whose relations are known, with random weights in float64."""

from __future__ import annotations

import numpy as np
import torch
import transformers as tf

from aibit_format import interop
from aibit_format.calibrate.statistics import About, Inputs, Statistics
from aibit_format.formats.in_memory import Pretrained
from aibit_format.formats.models import meta_model_of
from aibit_format.hf import compat
from aibit_format.transform.families import FAMILIES
from aibit_format.transform.source import Transformed
from aibit_format.transform.structure import decoder_of

_COMMON = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
# What a family's own default would make of a small model: positions, biases, norms of heads, multipliers.
_MORE = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoe": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "cwm": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen3_moe": {"mlp_only_layers": [1]},
}
NAMES = sorted(FAMILIES)


def config(name: str, **more):
    """The configuration of a family; a small one."""
    family = tf.models.auto.configuration_auto.CONFIG_MAPPING[name]
    made = family(**(_COMMON | _MORE.get(name, {}) | more))
    for key, value in _EXPERTS.items():
        if hasattr(made, key):
            setattr(made, key, value)
    return made


def build(name: str, dtype: torch.dtype = torch.float64, **more):
    """A model with random weights, norms and biases among them."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config(name, **more), attn_implementation="eager").to(dtype).eval()
    compat.run_experts_by_themselves(model)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim == 1:
                value.copy_(torch.rand(value.shape, dtype=dtype) + (0.5 if "norm" in key else -0.5))
            else:
                value.copy_(torch.randn(value.shape, dtype=dtype) * 0.2)
    model.tie_weights()
    return model


def logits(model) -> torch.Tensor:
    """What a model says of 13 tokens."""
    ids = torch.randint(3, 160, (2, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits


def source_of(name: str, **more) -> tuple[Transformed, torch.Tensor]:
    """Such a model as a source that can be transformed, and its logits."""
    model = build(name, **more)
    source = Pretrained(model)
    return Transformed(source, meta_model_of(source)), logits(model)


def rebuilt(source: Transformed):
    """The model that a transformed source holds."""
    kind, config = type(source.model.module), source.model.module.config
    model = kind(config).double().eval()
    compat.run_experts_by_themselves(model)
    state = {name: interop.to_torch(source.planes(name)["values"], found.dtype) for name, found in
             source.tensors.items()}  # fmt: skip
    state |= {name: state[owner] for name, owner in source.model.ties.items()}
    model.load_state_dict(state)
    return model


def apart(source: Transformed, expected: torch.Tensor) -> float:
    """How far a source's logits are from others, as a share of the largest."""
    return float((logits(rebuilt(source)) - expected).abs().max() / expected.abs().max())


def statistics(source: Transformed, **more) -> Statistics:
    """Statistics of everything that reads channels, with columns of very different sizes."""
    random, found = np.random.default_rng(1), {}
    for channels in decoder_of(source.model).channels:
        for port in channels.readers:
            spec = source.model.parameters[port.name]
            if not spec.takes_inputs:
                continue
            groups = spec.shape[0] if spec.role == "experts" else 1
            x = random.normal(size=(groups, 40, spec.columns)) * np.exp(random.normal(size=spec.columns))
            found[port.name] = Inputs(
                np.full(groups, 40), (x**2).sum(1), x.sum(1), np.abs(x).sum(1), np.abs(x).max(1).astype(np.float32),
                x.min((1, 2)), x.max((1, 2)), np.zeros(9, np.float32),
                (np.swapaxes(x, 1, 2) @ x).astype(np.float32), spec.role == "experts",
            )  # fmt: skip
    about = About("Some", "", "", 40, 1, 40)
    return Statistics(about, found, source.model.ties, **more)
