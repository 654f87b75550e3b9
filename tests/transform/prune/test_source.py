"""A pruned source is a source: what is kept whole passes through, codes stay where they can, ties stay tied."""

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source, values
from aibit_format.schemes.select import selected_values
from aibit_format.transform.prune.plan import Plan
from aibit_format.transform.prune.refit import refitted
from aibit_format.transform.prune.source import Pruned
from aibit_format.transform.source import Transformed
from tests.support import architectures, decoders

DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"
BLOCKS = np.r_[0:32, 96:128]


def opened(path):
    source = open_source(path)
    return source, Transformed(source, meta_model_of(source))


def channels(kept):
    return Plan(channels={0: kept, 1: kept}, how="channels")


@pytest.fixture
def folder(tmp_path):
    architectures.save("llama-tied", tmp_path / "hf")
    return tmp_path / "hf"


def test_what_is_kept_whole_is_read_where_it_lies(folder):
    source, base = opened(folder)
    made = Pruned(base, Plan(layers=np.array([1]), how="drop=0"), scored="none")
    name = "model.layers.1.self_attn.q_proj.weight"
    query = made.tensors[name.replace(".1.", ".0.")]
    assert (query.offset, query.file, query.computed) == (source.tensors[name].offset, source.tensors[name].file, False)
    assert np.array_equal(values(made, query.name)[0], values(source, name)[0])
    assert made.files == source.files and made.kind == source.kind and not made.notes
    assert made.metadata["pruning.applied"] == ["drop=0"] and made.metadata["pruning.scores"] == ["none"]
    assert made.model.ties == base.model.ties and "lm_head.weight" not in made.tensors


@pytest.mark.parametrize(("scheme", "stays"), [("int4-group,group=32", True), ("int4-group,group=64", False),
                                               ("int8", True), ("nf4,nested=1", False),
                                               ("int8-outlier", False)])  # fmt: skip
def test_codes_stay_where_whole_blocks_do(folder, tmp_path, scheme, stays):
    aibit.convert(folder, tmp_path / "m.aibit", scheme=scheme)
    source, base = opened(tmp_path / "m.aibit")
    made = Pruned(base, channels(BLOCKS))
    down, old = made.tensors[DOWN], source.tensors[DOWN]
    expected = selected_values(values(source, DOWN)[0], {2: BLOCKS})
    assert np.array_equal(values(made, DOWN)[0], expected) and down.shape == (64, 64)
    if stays:
        assert down.scheme == old.scheme and down.intended is None and not made.notes
        assert np.array_equal(made.tensors[DOWN].scheme.decode(made.planes(DOWN), down.shape, down.dtype), expected)
    else:
        assert down.scheme is None and down.intended == old.scheme
        assert made.notes[0].startswith("decoded and rounded again")
        assert "mlp." in made.notes[0]


def test_what_is_fitted_is_computed(folder):
    _, base = opened(folder)
    x = np.random.default_rng(0).normal(size=(300, 128)) @ np.random.default_rng(1).normal(size=(128, 128))
    hessian = (x.T @ x).astype(np.float32)[None]
    plan = Plan(channels={0: BLOCKS, 1: BLOCKS}, refit=True)
    made = Pruned(base, plan, {DOWN: hessian})
    expected = refitted(values(base, DOWN)[0].astype(np.float64), hessian[0], BLOCKS)
    assert np.allclose(made.planes(DOWN)["values"], expected, rtol=1e-5, atol=1e-6)
    other = DOWN.replace(".0.", ".1.")  # of which there is no Hessian
    assert np.array_equal(made.planes(other)["values"], values(base, other)[0][:, BLOCKS])


def test_experts_are_fitted_each_by_its_own(tmp_path):
    source, _ = decoders.source_of("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    statistics = decoders.statistics(source)
    kept = np.array([[0, 1, 2], [5, 6, 9]])
    plan = Plan(channels={0: kept, 1: kept}, experts={0: np.array([1, 3]), 1: np.array([1, 3])}, refit=True)
    hessian = statistics.inputs[name].hessian
    made = Pruned(source, plan, {name: hessian}).planes(name)["values"]
    weight = source.planes(name)["values"]
    assert np.allclose(made[1], refitted(weight[3], hessian[3], kept[1])) and made.shape == (2, 64, 3)


def test_tensors_that_the_model_does_not_use_stay(folder):
    source = open_source(folder)
    model = meta_model_of(source)
    extra = dict(source.tensors)
    extra["other.weight"] = extra[UP]
    source.tensors = extra
    made = Pruned(Transformed(source, model), channels(BLOCKS))
    assert made.tensors["other.weight"] == extra[UP]
