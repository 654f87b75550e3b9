"""The tensors that Mistral's models have beside a decoder's."""

from __future__ import annotations

import pytest

from aibit_format.formats.meta.params import Params
from aibit_format.formats.meta.rows import DECODER, MLP
from aibit_format.formats.mistral.config import sizes_of
from aibit_format.formats.mistral.rows import EXPERTS, MERGER, VISION, inside

PARAMS = {"dim": 64, "n_layers": 2, "hidden_dim": 96, "n_heads": 4, "vocab_size": 160}
EYE = {"hidden_size": 32, "patch_size": 8, "intermediate_size": 48, "num_attention_heads": 2, "spatial_merge_size": 2}
MODELS = {
    "mixtral": ((*DECODER, *EXPERTS), {"moe": {"num_experts": 4}}),
    "mistral3": ((*inside((*DECODER, *MLP)), *VISION, *MERGER), {"vision_encoder": EYE}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_size_of_a_row_is_one_of_the_model(name):
    rows, said = MODELS[name]
    sizes = sizes_of(Params("params.json", PARAMS | said))
    assert {size for row in rows for size in (*row.shape, row.heads) if isinstance(size, str)} <= sizes.keys()
    assert len({row.name for row in rows}) == len({row.target for row in rows}) == len(rows)
    assert all(row.name.count("{}") == row.target.count("{}") for row in rows)


def test_a_decoder_inside_another_model_has_other_names_and_the_same_head():
    targets = {row.name: row.target for row in inside(DECODER)}
    assert targets["tok_embeddings"] == "model.language_model.embed_tokens" and targets["output"] == "lm_head"
    assert targets["layers.{}.attention.wq"] == "model.language_model.layers.{}.self_attn.q_proj"
    assert all(row.target.startswith(("model.", "lm_head")) for row in DECODER)  # not those of the table itself


def test_only_what_is_rotated_moves():
    assert [row.name.rpartition(".")[2] for row in (*EXPERTS, *VISION, *MERGER) if row.heads] == ["wq", "wk"]
