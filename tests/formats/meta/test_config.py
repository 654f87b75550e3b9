"""A Llama's config from ``params.json``: sizes of published models, and what only the vocabulary or the base tells."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.meta.config import config_of, decoder_sizes, intermediate_size
from aibit_format.formats.meta.params import Params

SMALL = {"dim": 64, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5}


def params(**said):
    return Params("params.json", said)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),  # Llama 2 7B
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # Llama 2 70B
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),  # Llama 3.2 1B
        ({"dim": 96}, 256),  # already a multiple
    ],
)
def test_the_mlp_is_as_wide_as_in_published_models(said, size):
    assert intermediate_size(params(**said)) == size


def test_heads_share_keys_or_have_their_own():
    assert decoder_sizes(params(dim=64, n_heads=4, n_kv_heads=2)) == {
        "hidden": 64, "heads": 4, "key_heads": 2, "head": 16, "queries": 64, "keys": 32,
    }  # fmt: skip
    assert decoder_sizes(params(dim=64, n_heads=4))["keys"] == 64
    assert decoder_sizes(params(dim=65, n_heads=4), head=24)["queries"] == 96  # no share of the width
    for said, head in (({"dim": 64, "n_heads": 3}, None), ({"dim": 12, "n_heads": 4}, None),
                       ({"dim": 64, "n_heads": 4}, 7), ({"dim": 64, "n_heads": 4, "n_kv_heads": 3}, None)):  # fmt: skip
        with pytest.raises(SourceError, match=r"params\.json: n_(kv_)?heads is "):
            decoder_sizes(params(**said), head)


@pytest.mark.parametrize(
    ("said", "vocabulary", "context"),
    [
        ({"norm_eps": 1e-6}, 32000, 2048), ({}, 32000, 4096), ({"rope_theta": 1e6}, 32016, 16384),
        ({"rope_theta": 5e5}, 128256, 8192), ({"rope_theta": 5e5, "use_scaled_rope": True}, 128256, 131072),
    ],
)  # fmt: skip
def test_the_context_is_that_of_the_generation(said, vocabulary, context):
    found = params(**SMALL | said)
    sizes = decoder_sizes(found) | {"vocabulary": vocabulary, "intermediate": 256}
    assert config_of(found, sizes, tied=False)["max_position_embeddings"] == context


def test_a_tied_model_stretches_its_rotation_further():
    found = params(**SMALL, use_scaled_rope=True)
    sizes = decoder_sizes(found) | {"vocabulary": 8, "intermediate": 256}
    factors = [config_of(found, sizes, tied)["rope_parameters"]["factor"] for tied in (False, True)]
    assert factors == [8.0, 32.0]
    plain = config_of(params(**SMALL), sizes, tied=True)
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert plain["tie_word_embeddings"] and plain["num_key_value_heads"] == 4
