"""The command ``aibit convert``."""

from __future__ import annotations

import hashlib
import json

import pytest
import transformers

import aibit_format as aibit
from aibit_format.cli.arguments import rule
from tests.support.command import run
from tests.support.command_models import model as model
from tests.support.gguf_models import plain


def test_convert_says_what_it_did(model, tmp_path, capsys):
    status, out, err = run("convert", model / "hf", "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 0 and err == ""
    assert "model.layers.0.self_attn.q_proj.weight" in out and "rms error" in out
    assert "tensors: 14 quantized" in out and "1 tied" in out and "memory saved" in out and "ratio" in out
    assert (tmp_path / "m.aibit").read_bytes() == (model / "m.aibit").read_bytes()


def test_convert_json_holds_the_same(model, tmp_path, capsys):
    status, out, _ = run("convert", model / "hf", "-o", tmp_path / "m.aibit", "--json", capsys=capsys)
    report = json.loads(out)
    assert status == 0 and report["compression_ratio"] > 1
    assert report["memory_saved_bytes"] == report["original_bytes"] - report["quantized_bytes"]
    lossy = [t for t in report["tensors"] if t["error"]]
    assert len(lossy) == 14 and all(0 < t["error"]["relative_rms"] < 0.1 for t in lossy)


def test_dry_run_writes_nothing_and_its_sizes_are_those_of_the_file(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("convert", model / "hf", "--dry-run", "--json", "--tensor", "mlp=bf16", capsys=capsys)
    assert status == 0 and list(tmp_path.iterdir()) == []
    plan = json.loads(out)
    schemes = {t["name"]: t["scheme"] for t in plan["tensors"]}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "bf16"
    _, out, _ = run("convert", model / "hf", "--dry-run", "--json", capsys=capsys)
    with aibit.open(model / "m.aibit") as file:
        stored = sum(file.info(name).nbytes for name in file if file.info(name).alias_of is None)
    assert json.loads(out)["quantized_bytes"] == stored


def test_a_scheme_is_refused_where_nothing_says_which_tensors_it_is_for(tmp_path, capsys):
    plain(tmp_path / "m.gguf")
    arguments = "convert", tmp_path / "m.gguf", "-o", tmp_path / "m.aibit"
    status, _, err = run(*arguments, "--scheme", "nf4", capsys=capsys)
    assert status == 2 and "which tensors nf4 is for" in err and "--tensor 'REGEX=nf4'" in err
    assert run(*arguments, "--tensor", "blk=nf4", capsys=capsys)[0] == 0
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.metadata["quantization.recipe"] == ["*=keep", "blk=nf4"]
    assert run(*arguments, "--force", capsys=capsys)[0] == 0
    with aibit.open(tmp_path / "m.aibit") as file:  # the default, where there is no model, is to keep
        assert file.metadata["quantization.recipe"] == ["*=keep"]


def test_convert_says_if_nothing_is_quantized(tmp_path, capsys):
    """This model has convolutions alone."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "hf")
    arguments = "convert", tmp_path / "hf", "-o", tmp_path / "m.aibit"
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 0 and "nothing is int8: transformers quantizes none of the weights of ResNetModel" in err
    status, _, err = run(*arguments, "--force", "--scheme", "keep", capsys=capsys)
    assert status == 0 and "nothing is" not in err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mlp=bf16", ("mlp", "bf16")),
        ("mlp=nf4,block_size=128,nested=1", ("mlp", "nf4,block_size=128,nested=1")),
        ("mlp=nf4,nested", ("mlp", "nf4,nested")),
        ("(?=a)b=nf4,nested=1", ("(?=a)b", "nf4,nested=1")),
        (r"x=y\.z=keep", (r"x=y\.z", "keep")),
    ],
)
def test_a_rule_may_have_parameters(text, wanted):
    assert rule(text) == wanted


def test_a_file_says_how_well_it_predicts_a_text(fixtures, tmp_path, capsys):
    model, text, out = fixtures / "models" / "tiny-llama", fixtures / "models" / "heldout.txt", tmp_path / "m.aibit"
    arguments = ("convert", model, "-o", out, "--scheme", "nf4", "--measure", text)
    status, shown, err = run(*arguments, "--json", capsys=capsys)
    assert status == 0 and "4,095 tokens predicted, perplexity" in err and "nats" in err
    with aibit.open(out) as file:
        found = {key: value for key, value in file.metadata.items() if key.startswith("quality.")}
        report = json.loads(shown)
        assert (report["path"], report["root"], report["file_bytes"]) == (str(out), file.root, file.size)
    assert found["quality.text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (found["quality.tokens"], found["quality.context"]) == (4095, 256)
    status, shown, _ = run("eval", out, "--text", text, "--ref", model, "--limit", 4096, "--json", capsys=capsys)
    again = json.loads(shown)
    assert found["quality.kl_mean"] == pytest.approx(again["divergence"]["mean"], rel=1e-5)
    assert found["quality.perplexity"] == pytest.approx(again["perplexity"], rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.aibit"]
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 1 and "exists; --force" in err
    (tmp_path / "latin").write_bytes("aé".encode("latin-1"))
    status, _, err = run(*arguments[:4], "--force", "--measure", tmp_path / "latin", capsys=capsys)
    assert status == 1 and "no UTF-8 at byte 1" in err


def test_a_model_is_transformed_first(model, tmp_path, capsys):
    status, out, err = run(
        "convert", model / "hf", "-o", tmp_path / "m.aibit", "--transform", "rotate,seed=3", "--json", capsys=capsys
    )
    assert status == 0 and json.loads(out)["transformed"] == ["rotate,seed=3"]
    assert "aibit: rotate: the head is no longer tied to the embedding" in err and "MB more in" in err
    status, _, err = run("convert", model / "hf", "--dry-run", "--transform", "awq", capsys=capsys)
    assert status == 2 and "awq goes by statistics of activations" in err and "--calibrate" in err
