"""Files of statistics: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from aibit_format.calibrate import files
from aibit_format.calibrate.statistics import About, Inputs, Statistics
from aibit_format.errors import SourceError, WriteError

ABOUT = About("MixtralForCausalLM", "0" * 32, "1" * 32, 6, 2, 3, names=("t.txt",))


def statistics():
    random = np.random.default_rng(0)
    x = random.standard_normal((6, 4)).astype("f")
    hessian = (x.T @ x)[None]
    plain = Inputs(np.array([6]), random.random((1, 4)), random.random((1, 4)), random.random((1, 4)),
                   random.random((1, 4)).astype("f"), np.zeros(1, "f"), np.ones(1, "f"), np.zeros(9, "f"),
                   np.triu(hessian) + np.triu(hessian, 1).swapaxes(1, 2))  # fmt: skip
    experts = Inputs(np.array([2, 1, 3]), random.random((3, 5)), experts=True)
    return Statistics(ABOUT, {"z.weight": plain, "a.down_proj": experts}, {"head": "z.weight"})


def test_what_is_written_is_read(tmp_path):
    path, found = str(tmp_path / "s.safetensors"), statistics()
    files.save(found, path)
    again = files.load(path)
    assert (again.about, again.ties, list(again.inputs)) == (found.about, found.ties, list(found.inputs))
    assert again.digest == found.digest and again.inputs["a.down_proj"].experts
    assert (again.inputs["z.weight"].hessian == found.inputs["z.weight"].hessian).all()
    with safe_open(path, "numpy") as file:  # of the library itself
        assert (file.get_tensor("z.weight.in_sum2") == found.inputs["z.weight"].sum2).all()
    assert files.is_statistics(path)
    with pytest.raises(WriteError, match="exists"):
        files.save(found, path)


def with_shared():
    """The same, with a weight whose inputs are those of another."""
    found = statistics()
    first = found.inputs["z.weight"]
    return Statistics(ABOUT, found.inputs | {"y.weight": replace(first, low=None)}, found.ties)


def test_weights_with_the_same_inputs_share_a_hessian(tmp_path):
    path, found = str(tmp_path / "s.safetensors"), with_shared()
    files.save(found, path)
    with safe_open(path, "numpy") as file:
        assert [name for name in file.keys() if name.endswith("hessian")] == ["z.weight.in_hessian"]  # noqa: SIM118
        assert json.loads(file.metadata()["hessians"]) == {"y.weight": "z.weight"}
    again = files.load(path)
    assert again.inputs["y.weight"].hessian is again.inputs["z.weight"].hessian and again.digest == found.digest
    other = dict(found.inputs)
    other["z.weight"] = replace(other["z.weight"], hessian=other["z.weight"].hessian * 2)
    assert Statistics(ABOUT, other, found.ties).digest != found.digest


@pytest.mark.parametrize("owners", [{"y.weight": "x"}, {"x": "z.weight"}, {"z.weight": "z.weight"},
                                    {"y.weight": "a.down_proj"}])  # fmt: skip
def test_a_hessian_that_is_shared_must_be_there(owners, tmp_path):
    path = str(tmp_path / "s.safetensors")
    files.save(with_shared(), path)
    with safe_open(path, "numpy") as file:
        tensors = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | {"hessians": json.dumps(owners)}
    save_file(tensors, path, metadata)
    with pytest.raises(SourceError, match="shares the Hessian of"):
        files.load(path)


def damaged(tmp_path, change=None, header=None):
    """A file of the statistics with some tensors or keys of its header changed."""
    path = tmp_path / "s.safetensors"
    files.save(statistics(), str(path), overwrite=True)
    with safe_open(path, "numpy") as file:
        tensors = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | (header or {})
    save_file({name: value for name, value in (tensors | (change or {})).items() if value is not None}, path, metadata)
    return str(path)


@pytest.mark.parametrize(("change", "match"), [
    ({"z.weight.in_sum2": np.full((1, 4), np.nan)}, "in_sum2 is not finite"),
    ({"z.weight.in_sum2": np.full((1, 4), -1.0)}, "in_sum2 is negative"),
    ({"z.weight.in_counts": np.array([-1])}, "in_counts is negative"),
    ({"a.down_proj.in_counts": np.array([2, 0, 3])}, "sums of no tokens"),
    ({"z.weight.in_sum": np.zeros((1, 5))}, r"in_sum has shape \[1, 5\]"),
    ({"z.weight.in_sum2": None}, "are missing"),
    ({"z.weight.in_hessian": np.zeros((1, 4, 5), "f")}, r"in_hessian has shape \[1, 4, 5\]"),
    ({"z.weight.in_hessian": np.full((1, 4, 4), np.inf, "f")}, "in_hessian is not finite"),
    ({"z.weight.in_hessian": np.full((1, 4, 4), np.nan, "f")}, "in_hessian is negative or not finite on its diagonal"),
    ({"z.weight.in_hessian": -np.eye(4, dtype="f")[None]}, "in_hessian is negative or not finite on its diagonal"),
    ({"z.weight.in_hessian": np.eye(4, dtype="f")[None] + np.eye(4, k=2, dtype="f")}, "in_hessian is not symmetric"),
    ({"z.weight.in_low": np.zeros(1)}, "no statistics that this reader knows"),
    ({"z.weight": np.zeros(1)}, "no statistics that this reader knows"),
    ({"b.in_counts": np.array([1]), "b.in_sum2": np.ones((1, 1))}, "lists 2 weights, and has statistics of 3"),
])  # fmt: skip
def test_values_that_no_statistics_have_are_refused(change, match, tmp_path):
    with pytest.raises(SourceError, match=match):
        files.load(damaged(tmp_path, change))


@pytest.mark.parametrize(("header", "match"), [
    ({"format": "pt"}, "none of statistics"), ({"version": "2"}, "version '2', this reader knows '1'"),
    ({"about": "{"}, "what it says"), ({"ties": "[]"}, "ties: a JSON object"), ({"tensors": "[1]"}, "a JSON list"),
    ({"experts": "x"}, "experts: not JSON"),
])  # fmt: skip
def test_headers_are_checked(header, match, tmp_path):
    with pytest.raises(SourceError, match=match):
        files.load(damaged(tmp_path, header=header))


def test_texts_are_no_statistics(tmp_path):
    (tmp_path / "t.txt").write_text(json.dumps({"a": "text that happens to be JSON"}))
    assert not files.is_statistics(str(tmp_path / "t.txt")) and not files.is_statistics(str(tmp_path / "none"))


def test_where_nothing_can_be_written_is_said_before_any_work(tmp_path):
    with pytest.raises(WriteError, match="holds no Hessians"):
        files.check_target(str(tmp_path / "x.gguf"), False, True)
    for path in (tmp_path, tmp_path / "none" / "s.safetensors"):
        with pytest.raises(WriteError):
            files.check_target(str(path), True, False)
