"""How many tokens a model was made for."""

from __future__ import annotations

import pytest
import transformers

from aibit_format.hf.context import context_of


def _yarn(positions: int, **parameters) -> transformers.LlamaConfig:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, **parameters}
    return transformers.LlamaConfig(max_position_embeddings=positions, rope_parameters=rope)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (transformers.LlamaConfig(max_position_embeddings=64), 64),
        (transformers.GPT2Config(n_positions=32), 32),
        (transformers.T5Config(), None),
        (transformers.MambaConfig(), None),
        (_yarn(64, factor=4.0, original_max_position_embeddings=64), 256),
        (_yarn(256, factor=4.0, original_max_position_embeddings=64), 256),
    ],
)
def test_the_context_is_what_the_configuration_says(config, context):
    assert context_of(config) == context
