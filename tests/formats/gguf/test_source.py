"""GGUF in and out: blocks bit for bit, models as transformers' own loader reads them, tokenizers, hostile files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.formats.sources import open_source
from tests.support.gguf_models import NAMES, THEIRS, all_types, logits, theirs, written
from tests.support.gguf_models import models as models

transformers.utils.logging.disable_progress_bar()

# Models

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def weights(path) -> dict[str, np.ndarray]:
    """Values by name, laid out as the architecture wants them."""
    with aibit.open(path, verify="full") as file:
        found = {name: (file.dequantize(name), file.info(name)) for name in file}
    return {name: values.T if info.transposed else values for name, (values, info) in found.items()}


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "q8_0"), ("llama-tied", "f16"), ("qwen2", "q5_1"), ("gpt2", "q8_0"), ("gpt2", "bf16")]
)
def test_a_model_comes_in_as_transformers_reads_it(name, kind, models, tmp_path):
    written(models(name) / "m.aibit", tmp_path / "m.gguf", type=kind)
    report = aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit", scheme="keep")
    assert not report.unused and all(t.error is None for t in report.tensors if t.scheme.startswith("gguf:"))
    reference = theirs(tmp_path / "m.gguf")
    state = reference.state_dict()
    found = weights(tmp_path / "b.aibit")
    assert found.keys() == state.keys()
    for key, values in found.items():
        assert np.array_equal(values, state[key].numpy()), key
    model = aibit.load_model(tmp_path / "b.aibit")
    wanted = logits(reference.to(model.dtype))
    assert (logits(model) - wanted).abs().max() < 2e-2 * wanted.abs().max()
    before, after = aibit.load_model(models(name) / "m.aibit").config.to_dict(), model.config.to_dict()
    assert {key for key in before if before[key] != after.get(key)} <= {
        "dtype", "transformers_version", "n_inner", "initializer_range"
    }  # fmt: skip


def test_the_same_model_comes_back_from_f32(models, tmp_path):
    """Biases of Llama, and rotary scaling: transformers' loader knows neither."""
    for name, changes in (("llama-bias", {}), ("llama", {"rope_parameters": LLAMA3})):
        source = models(name, **changes)
        file = written(source / "m.aibit", tmp_path / "m.gguf", overwrite=True)
        assert ("rope_freqs.weight" in {t.name for t in file.tensors}) == (name == "llama")
        aibit.convert(tmp_path / "m.gguf", tmp_path / "b.aibit", scheme="keep", overwrite=True)
        model, original = aibit.load_model(tmp_path / "b.aibit"), aibit.load_model(source / "m.aibit")
        assert model.config.rope_parameters == original.config.rope_parameters
        assert torch.equal(logits(model), logits(original))


def test_blocks_of_all_all_types_return_untouched(tmp_path):
    arrays = all_types(tmp_path / "m.gguf")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert {file.info(name).scheme.name for name in file} == {*NAMES, "bf16"}
        assert file.check_document("config.json")["dtype"] == "bfloat16"
    again = written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    assert {t.name for t in again.tensors} == set(arrays) and again.metadata["general.name"] == "all types"
    for tensor in again.tensors:
        assert again.read(tensor).tobytes() == arrays[tensor.name].tobytes(), tensor.name


def test_rows_of_every_type_are_put_in_order_as_transformers_does(tmp_path):
    for turn in range(0, len(THEIRS), 6):  # so that each type has its turn as queries or keys, whose rows are moved
        all_types(tmp_path / "m.gguf", THEIRS[turn:] + THEIRS[:turn])
        aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", overwrite=True)
        found, state = weights(tmp_path / "m.aibit"), theirs(tmp_path / "m.gguf").state_dict()
        assert found.keys() == state.keys() and all(np.array_equal(found[key], state[key].numpy()) for key in found)


def test_a_factor_beside_a_tensor_keeps_the_file_from_being_a_model(tmp_path):
    arrays = all_types(tmp_path / "m.gguf", factors={"blk.0.ffn_up.scale": np.array([0.5], np.float32)})
    source = open_source(str(tmp_path / "m.gguf"))
    assert "'blk.0.ffn_up.scale' scales the values of another" in source.no_model
    assert set(source.tensors) == set(arrays)


def test_what_came_from_gguf_can_be_quantized_anew(models, tmp_path):
    written(models("gpt2") / "m.aibit", tmp_path / "m.gguf", type="q8_0")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "blocks.aibit")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "rows.aibit", scheme="int8")
    before, after = weights(tmp_path / "blocks.aibit"), weights(tmp_path / "rows.aibit")
    with aibit.open(tmp_path / "rows.aibit") as file:
        assert file.info("transformer.h.0.mlp.c_fc.weight").scheme.name == "int8"
        assert file.info("transformer.wte.weight").scheme.name == "gguf:q8_0"
    for name, values in before.items():
        assert np.abs(after[name] - values).max() <= np.abs(values).max() / 254 * 1.01, name
