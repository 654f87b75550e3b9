"""Scaling of rotary embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from aibit_format.errors import SourceError
from aibit_format.formats.gguf import rope

transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor", "high", "old"),
    [(5e5, 128, 8.0, 4.0, 8192), (5e5, 64, 32.0, 4.0, 8192), (1e4, 64, 4.0, 8.0, 1024), (1e4, 16, 8.0, 4.0, 64)],
)
def test_llama3_scaling_is_found_again_in_its_factors(theta, head_dim, factor, high, old):
    parameters = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
        "original_max_position_embeddings": old,
    }  # fmt: skip
    factors = rope.frequency_factors(parameters, head_dim)
    found = rope.llama3_parameters(factors, theta)
    config = {"hidden_size": head_dim, "num_attention_heads": 1, "max_position_embeddings": 1 << 17}
    wanted, again = (
        ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**config, rope_parameters=dict(p)), "cpu")[0]
        for p in (parameters, found)
    )
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=0)
    default = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    torch.testing.assert_close(default / torch.from_numpy(factors), wanted.double(), rtol=1e-5, atol=0)
    if head_dim >= 64:
        assert found == parameters


def test_factors_of_another_scaling_are_refused():
    for factors in (np.linspace(1, 40, 32), np.array([0.5] * 32), np.array([np.nan] * 32)):
        with pytest.raises(SourceError, match=r"rope_freqs\.weight"):
            rope.llama3_parameters(factors.astype(np.float32), 10000.0)


@pytest.mark.parametrize(
    ("parameters", "keys"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"freq_base": 5e5}),
        ({"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
         {"freq_base": 1e4, "scaling.type": "linear", "scaling.factor": 4.0}),
        ({"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
          "beta_fast": 16.0},
         {"freq_base": 1e4, "scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32,
          "scaling.yarn_beta_fast": 16.0}),
    ],
)  # fmt: skip
def test_rotary_scaling_goes_both_ways(parameters, keys):
    assert rope.to_gguf(parameters, {}) == keys and rope.from_gguf(keys, {}, 128) == parameters
    with pytest.raises(SourceError, match="no counterpart"):
        rope.to_gguf(parameters | {"rope_type": "dynamic"}, {})
    with pytest.raises(SourceError, match="unknown here"):
        rope.from_gguf(keys | {"scaling.type": "longrope", "scaling.factor": 2.0}, {}, 128)
