"""A transformed source is a source: unchanged tensors pass through, changed ones are computed, ties can be broken."""

import json

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.dtypes import to_float32
from aibit_format.errors import SourceError
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source, values
from aibit_format.transform.changes import Scale
from aibit_format.transform.source import Transformed
from tests.support import architectures

QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"


def opened(path):
    source = open_source(path)
    return source, Transformed(source, meta_model_of(source))


def double(columns):
    return [Scale(-1, np.full(columns, 2.0))]


@pytest.fixture
def folder(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    return tmp_path / "hf"


def test_what_is_not_changed_is_read_where_it_lies(folder):
    source, made = opened(folder)
    made = made.transformed("double", {QUERY: double(64)}, {"transform.double": 1}, ["a note"])
    assert set(made.tensors) == set(source.tensors) and made.files == source.files
    down, query = made.tensors[DOWN], made.tensors[QUERY]
    assert down == source.tensors[DOWN] and down.offset and not down.computed
    assert query.computed and query.offset is None and query.dtype == "f32"
    assert np.array_equal(values(made, QUERY)[0], 2 * values(source, QUERY)[0])
    assert np.array_equal(values(made, DOWN)[0], values(source, DOWN)[0])
    assert made.metadata["transform.applied"] == ["double"] and made.metadata["transform.double"] == 1
    assert made.notes == ("a note",) and made.kind == source.kind


def test_changes_follow_one_another_and_leave_the_source_before_alone(folder):
    source, first = opened(folder)
    second = first.transformed("double", {QUERY: double(64)})
    third = second.transformed("again", {QUERY: double(64), DOWN: double(128)})
    for made, (query, down) in {first: (1, 1), second: (2, 1), third: (4, 2)}.items():
        assert np.array_equal(values(made, QUERY)[0], query * values(source, QUERY)[0])
        assert np.array_equal(values(made, DOWN)[0], down * values(source, DOWN)[0])
    assert third.metadata["transform.applied"] == ["double", "again"] and "transform.applied" not in first.metadata


def test_quantized_tensors_are_kept_or_decoded(folder, tmp_path):
    aibit.convert(folder, tmp_path / "m.aibit", scheme="nf4")
    source, made = opened(tmp_path / "m.aibit")
    made = made.transformed("double", {QUERY: double(64)})
    assert made.tensors[DOWN].scheme == source.tensors[DOWN].scheme != made.tensors[QUERY].scheme is None
    assert np.array_equal(made.planes(DOWN)["codes"], source.planes(DOWN)["codes"])
    assert np.array_equal(values(made, QUERY)[0], 2 * values(source, QUERY)[0])


def test_stacked_experts(tmp_path):
    architectures.save("mixtral", tmp_path / "hf")
    source, made = opened(tmp_path / "hf")
    name = "model.layers.0.mlp.experts.down_proj"
    assert name not in source.tensors
    parts = [values(source, key)[0] for key in sorted(source.tensors) if ".layers.0." in key and "w2" in key]
    assert np.array_equal(values(made, name)[0], np.stack(parts))
    factors = np.arange(1.0, 1 + 4 * 128).reshape(4, 128)
    changed = made.transformed("each", {name: [Scale(-1, factors)]})
    assert np.allclose(values(changed, name)[0], np.stack(parts) * factors[:, None], rtol=1e-6)


def test_a_tie_is_broken_in_values_and_config(folder):
    source, made = opened(folder)
    assert "lm_head.weight" in made.model.ties
    untied = made.transformed("double", {"model.embed_tokens.weight": double(64)}).untied()
    untied = untied.transformed("head", {"lm_head.weight": double(64)})
    assert not untied.model.ties and made.model.ties
    embedding = values(source, "model.embed_tokens.weight")[0]
    assert np.array_equal(values(untied, "model.embed_tokens.weight")[0], 2 * embedding)
    assert np.array_equal(values(untied, "lm_head.weight")[0], 4 * embedding)
    assert json.loads(untied.documents["config.json"])["tie_word_embeddings"] is False
    assert json.loads(made.documents["config.json"])["tie_word_embeddings"] is True


def test_values_that_do_not_fit_name_the_tensor(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", dtype=architectures.torch.float16)
    _, made = opened(tmp_path / "hf")
    made = made.transformed("huge", {DOWN: [Scale(-1, np.full(128, 1e6))]})
    with pytest.raises(SourceError, match=f"tensor '{DOWN}': a value is too large for f16"):
        made.planes(DOWN)
    assert np.isfinite(to_float32(made.planes(QUERY)["values"], "f16")).all()


def test_tensors_that_the_model_does_not_use_stay(folder):
    source = open_source(folder)
    model = meta_model_of(source)
    extra = dict(source.tensors)
    extra["other.weight"] = extra[QUERY]
    source.tensors = extra
    assert Transformed(source, model).tensors["other.weight"] == extra[QUERY]
