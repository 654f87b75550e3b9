"""The command ``aibit eval``."""

from __future__ import annotations

import json
import shutil

import pytest

import aibit_format as aibit
from tests.support.command import run
from tests.support.evaluated_models import text as text


@pytest.fixture(scope="module")
def files(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    for scheme in ("bf16", "int8", "nf4"):
        aibit.convert(fixtures / "models" / "tiny-llama", folder / f"{scheme}.aibit", scheme=scheme)
    return folder


def test_fewer_bits_are_further_from_the_original(files, fixtures, text, capsys):
    original, found = fixtures / "models" / "tiny-llama", {}
    for scheme in ("bf16", "int8", "nf4"):
        asked = (files / f"{scheme}.aibit", "--text", text, "--ref", original, "--context", 256, "--limit", 2000)
        status, out, err = run("eval", *asked, "--json", capsys=capsys)
        found[scheme] = json.loads(out)
        assert (status, err) == (0, "")
    assert found["bf16"]["divergence"]["largest"] < 1e-6 and found["bf16"]["divergence"]["same_first"] == 1
    assert found["bf16"]["perplexity"] == pytest.approx(found["bf16"]["reference_perplexity"], rel=1e-6)
    means = [found[scheme]["divergence"]["mean"] for scheme in ("bf16", "int8", "nf4")]
    assert means == sorted(means) and means[1] < 2e-3 < 5e-3 < means[2] < 5e-2
    assert found["int8"]["divergence"]["same_first"] > 0.95 and found["nf4"]["tokens"] == 1999
    status, out, _ = run("eval", *asked, capsys=capsys)
    assert status == 0 and "1,999 tokens predicted" in out and "same first" in out and "ratio" in out
    status, out, _ = run("eval", files / "int8.aibit", "--text", text, "--context", 256, "--limit", 300, capsys=capsys)
    assert status == 0 and "perplexity" in out and "reference" not in out
    status, out, _ = run("eval", *asked[:3], "--ref", files / "bf16.aibit", *asked[5:], "--json", capsys=capsys)
    again, before = json.loads(out)["divergence"], found["nf4"]["divergence"]
    assert again == pytest.approx(before, rel=1e-3, abs=1e-6)


def test_several_models_are_one_table_against_kept_predictions(files, fixtures, text, tmp_path, capsys):
    kept, models = tmp_path / "logits.safetensors", [files / f"{scheme}.aibit" for scheme in ("int8", "nf4")]
    asked = ("--text", text, "--context", 128, "--limit", 500)
    original = ("--ref", fixtures / "models" / "tiny-llama", "--save-logits", kept)
    status, out, err = run("eval", *models, *asked, *original, capsys=capsys)
    assert (status, err) == (0, "") and "499 tokens predicted" in out and "reference" in out
    head, *rows = out.strip().splitlines()[-3:]
    assert all(word in head for word in ("KL mean", "KL 99 %", "same first", "first token", "tokens/s"))
    assert [row.split()[0] for row in rows] == [str(path) for path in models]
    status, out, _ = run("eval", *models, *asked, "--ref", kept, "--json", capsys=capsys)
    found = json.loads(out)["models"]
    assert status == 0 and [each["file"] for each in found] == [str(path) for path in models]
    assert 0 < found[0]["divergence"]["mean"] < found[1]["divergence"]["mean"]
    assert all(each["tokens_per_second"] > 0 and each["bytes"] > 0 for each in found)
    status, _, err = run("eval", *models, *asked, *original, capsys=capsys)
    assert status == 1 and "exists" in err
    status, out, _ = run("eval", *models, *asked, capsys=capsys)
    assert status == 0 and "KL" not in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "--text"),
        (["--text", "{text}", "--context", "1"], 2, "2 or more"),
        (["--text", "{text}", "--context", "9", "--stride", "10"], 2, "from 1 to as many"),
        (["--text", "{text}", "--context", "257"], 1, "the model takes 256"),
        (["--text", "{text}", "--save-logits", "x"], 2, "the model that --ref names"),
        (["--text", "{text}", "--context", "256", "--ref", "x.safetensors"], 1, "x.safetensors"),
        (["--text", "nowhere", "--context", "256"], 1, "No such file"),
        (["--text", "{latin}", "--context", "256"], 1, "no UTF-8 at byte 1"),
        (["--text", "{empty}", "--context", "256"], 1, "two or more are needed"),
        (["--text", "{text}", "--context", "256", "--ref", "{empty}"], 3, "AIB-E101"),
        (["--text", "{text}", "--context", "256", "--ref", "{folder}"], 1, "transformers cannot load it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, files, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "text")
    (tmp_path / "latin").write_bytes("aé".encode("latin-1"))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    places = {name: tmp_path / name for name in ("text", "latin", "empty", "folder")}
    given = [argument.format(**places) for argument in arguments]
    found, out, err = run("eval", files / "int8.aibit", *given, capsys=capsys)
    assert found == status and message in err and out == "" and "Traceback" not in err
