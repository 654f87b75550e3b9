"""The command ``aibit calibrate``, and ``aibit convert --calibrate``."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from aibit_format.calibrate import files
from tests.support import calibrated
from tests.support.command import run

FEW = ("--samples", "3", "--length", "24")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory and a text."""
    return calibrated.save("mixtral", tmp_path_factory.mktemp("calibrated") / "hf")


def test_a_line_for_each_layer_and_what_it_is_of(model, tmp_path, capsys):
    folder, text = model
    target = tmp_path / "s.safetensors"
    status, out, err = run("calibrate", folder, "--text", text, *FEW, "-o", target, capsys=capsys)
    assert (status, err) == (0, "")
    found = files.load(str(target))
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "tokens", "mean", "std", "min", "max", "score"]
    query = found.inputs["model.layers.0.self_attn.q_proj.weight"]
    row = next(line.split() for line in lines if line.startswith("model.layers.0.self_attn.q_proj.weight"))
    assert row[1:] == ["72", *(f"{value:.4g}" for value in (query.mean, query.std, *query.extremes, query.score()))]
    assert "3 samples of 24 tokens from text.txt, 72 in all" in out and found.digest in lines[-1]


def test_json(model, tmp_path, capsys):
    folder, text = model
    asked = ("calibrate", folder, "--text", text, text, *FEW, "--hessians", "q_proj", "-o", tmp_path / "s.safetensors")
    status, out, _ = run(*asked, "--json", "--threshold", "0.9", capsys=capsys)
    told = json.loads(out)
    found = files.load(str(tmp_path / "s.safetensors"))
    assert status == 0 and told["digest"] == found.digest and told["threshold"] == 0.9 and told["tokens"] == 72
    assert [row["name"] for row in told["tensors"]] == list(found.inputs) and told["names"] == ["text.txt"] * 2
    experts = next(row for row in told["tensors"] if row["name"].endswith("layers.0.mlp.experts.down_proj"))
    assert sum(experts["expert_tokens"]) == experts["tokens"] == 144 and len(experts["percentiles"]) == 9
    assert found.inputs["model.layers.0.self_attn.q_proj.weight"].hessian is not None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "-o/--output"),
        (["-o", "s", "--samples", "0"], 2, "not a positive number"),
        (["-o", "s", "--eps", "-1"], 2, "must not be negative"),
        (["-o", "s", "--text", "nowhere"], 1, "nowhere"),
        (["-o", "s", "--text", "{text}", "--length", "65"], 1, "the model takes 64: --length 64"),
        (["-o", "s", "--text", "{text}", "--length", "50"], 1, "too short"),
        (["-o", "s.gguf", "--text", "{text}", *FEW, "--hessians"], 1, "an imatrix holds no Hessians"),
        (["-o", "nowhere/s", "--text", "{text}", *FEW], 1, "in one that does not exist"),
        (["-o", "s", "--text", "{text}", *FEW, "--hessians", "("], 1, "no regular expression"),
        (["-o", "s", "--text", "{text}", *FEW, "--device", "abacus"], 1, "torch cannot compute there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [each.format(text=model[1]) for each in arguments]
    found, out, err = run("calibrate", model[0], *given, capsys=capsys)
    assert (found, out) == (status, "") and message in err
    assert not list(tmp_path.iterdir())


def test_converting_with_statistics_prints_what_was_chosen(model, tmp_path, capsys):
    folder, text = model
    run("calibrate", folder, "--text", text, *FEW, "-o", tmp_path / "s.safetensors", capsys=capsys)
    asked = ("convert", folder, "--scheme", "int8-auto", "-o", tmp_path / "m.aibit")
    status, _, err = run(*asked, capsys=capsys)
    assert status == 2 and "--calibrate FILE" in err and not (tmp_path / "m.aibit").exists()
    status, out, _ = run(*asked, "--calibrate", tmp_path / "s.safetensors", capsys=capsys)
    lines = out.splitlines()
    assert status == 0 and lines[0].split() == ["tensor", "mean", "std", "score", "mode", "scale", "zero", "point"]
    assert next(line for line in lines if "ratio" in line).split() == ["original", "quantized", "ratio", "saved"]
    status, out, _ = run(*asked, "--calibrate", tmp_path / "s.safetensors", "--force", "--json", capsys=capsys)
    told = json.loads(out)
    assert told["statistics"] == files.load(str(tmp_path / "s.safetensors")).digest
    with aibit.open(tmp_path / "m.aibit") as file:
        assert len(told["choices"]) == len(file.metadata["quantization.auto.tensor"]) == 12


def test_converting_with_a_method_says_where_it_is_not_used(model, tmp_path, capsys):
    folder, text = model
    given = ("--text", text, *FEW, "--hessians", "down_proj", "-o", tmp_path / "s.safetensors")
    assert run("calibrate", folder, *given, capsys=capsys)[0] == 0
    asked = ("convert", folder, "--scheme", "int4-group", "--method", "gptq", "-o", tmp_path / "m.aibit")
    status, _, err = run(*asked, capsys=capsys)
    assert status == 2 and "aibit calibrate --hessians (--calibrate FILE)" in err
    status, out, err = run(*asked, "--calibrate", tmp_path / "s.safetensors", "--json", capsys=capsys)
    methods = [tensor["method"] for tensor in json.loads(out)["tensors"]]
    assert status == 0 and methods.count("gptq,damping=0.01,ordered=1") == 2
    assert "gptq is not used for 10 tensors, as the statistics have no Hessian of it: model.layers.0" in err
    assert run(*asked[:-2], "x", "-o", tmp_path / "n.aibit", "--method", "gptq,size=3", capsys=capsys)[0] == 2


def test_a_layer_that_no_token_reached_is_told(model, tmp_path, capsys):
    folder, text = model
    found = aibit.calibrate(folder, [text], samples=3, length=24)
    first = next(iter(found.inputs))
    empty = found.inputs[first]
    zeros = {key: getattr(empty, key) * 0 for key in ("counts", "sum2", "sum", "magnitude", "largest")}
    lost = type(found)(found.about, dict(found.inputs) | {first: type(empty)(**zeros)}, found.ties)
    files.save(lost, str(tmp_path / "s.safetensors"))
    asked = ("convert", folder, "--scheme", "int8-auto", "--calibrate", tmp_path / "s.safetensors", "-o")
    status, _, err = run(*asked, tmp_path / "m.aibit", capsys=capsys)
    assert status == 0 and f"no token reached {first}: all their columns count alike" in err
