"""An importance of columns reaches the encoders of the tensors that it is for."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import RecipeError
from tests.support import architectures

DOWN = "model.layers.0.mlp.down_proj.weight"


def importance_of(columns, seed=0):
    return np.exp(np.random.default_rng(seed).normal(0, 2, columns)).astype(np.float32)


def values(path, name):
    with aibit.open(path) as file:
        return file.dequantize(name)


@pytest.mark.parametrize("scheme", [
    "gguf:q4_0", "gguf:iq4_nl", "q4_k_m", "int4-group,group=32", "nf4,search=1", "nvfp4", "cluster-group",
    "int-group,bits=3,zero=float", "fp8-block,rows=32,columns=64",
])  # fmt: skip
def test_the_weighted_error_falls_and_threads_make_no_difference(scheme, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", intermediate_size=256)
    aibit.convert(tmp_path / "hf", tmp_path / "exact.aibit", scheme="f32")
    aibit.convert(tmp_path / "hf", tmp_path / "alike.aibit", scheme=scheme)
    importance = {DOWN: importance_of(256)}
    for jobs in (1, 3):
        path = tmp_path / f"{jobs}.aibit"
        aibit.convert(tmp_path / "hf", path, scheme=scheme, importance=importance, jobs=jobs)
    exact = values(tmp_path / "exact.aibit", DOWN)
    alike, found = (
        ((values(tmp_path / name, DOWN) - exact) ** 2 * importance[DOWN]).sum() for name in ("alike.aibit", "1.aibit")
    )
    assert found < 0.9 * alike
    assert (tmp_path / "1.aibit").read_bytes() == (tmp_path / "3.aibit").read_bytes()
    other = DOWN.replace("layers.0", "layers.1")  # has none of its own
    assert np.array_equal(values(tmp_path / "1.aibit", other), values(tmp_path / "alike.aibit", other))


def test_matrices_of_a_stack_have_their_own_importance(tmp_path):
    architectures.save("mixtral", tmp_path / "hf")
    name = "model.layers.0.mlp.experts.down_proj"
    each = np.stack([importance_of(128, seed) for seed in range(4)])
    paths = {}
    for label, importance in {"own": each, "first": each[0], "last": each[3]}.items():
        paths[label] = tmp_path / f"{label}.aibit"
        aibit.convert(tmp_path / "hf", paths[label], scheme="gguf:q4_0", importance={name: importance})
    own, first, last = (values(path, name) for path in paths.values())
    assert np.array_equal(own[0], first[0]) and np.array_equal(own[3], last[3])
    assert not np.array_equal(own[3], first[3])


@pytest.mark.parametrize(("importance", "message"), [
    ({"model.layers.9.mlp.down_proj.weight": np.ones(128, np.float32)}, "no tensor of LlamaForCausalLM"),
    ({DOWN: np.ones(127, np.float32)}, "down_proj.*128 columns"), ({DOWN: np.ones(128)}, "float64, not float32"),
    ({DOWN: -np.ones(128, np.float32)}, "negative or not finite"),
    ({DOWN: np.full(128, np.nan, np.float32)}, "negative or not finite"),
])  # fmt: skip
def test_an_importance_of_something_else_is_refused(importance, message, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    with pytest.raises(RecipeError, match=message):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="gguf:q4_0", importance=importance)
    assert not (tmp_path / "m.aibit").exists()


def test_schemes_without_a_choice_take_none(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    importance = {DOWN: importance_of(128)}
    for name, given in (("a", None), ("b", importance)):
        aibit.convert(tmp_path / "hf", tmp_path / f"{name}.aibit", scheme="int8", importance=given)
    assert (tmp_path / "a.aibit").read_bytes() == (tmp_path / "b.aibit").read_bytes()
