"""Read the arguments of the command line."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from aibit_format.cli import main
from tests.support.command import run
from tests.support.command_models import model as model


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["convert", "{hf}"], 2, "-o OUT"),
        (["convert", "{hf}", "-o", "x", "--scheme", "int9"], 2, "unknown scheme 'int9'"),
        (["convert", "{hf}", "-o", "x", "--tensor", "mlp"], 2, "not REGEX=SCHEME"),
        (["convert", "{hf}", "-o", "x", "--tensor", "(=int8"], 2, "not a regular expression"),
        (["convert", "{hf}", "-o", "x", "--tensor", "nowhere=int8"], 2, "matches no tensor"),
        (["convert", "{hf}", "-o", "x", "--jobs", "0"], 2, "positive"),
        (["convert", "{hf}/config.json", "-o", "x"], 1, "not a source"),
        (["convert", "nowhere", "-o", "x"], 1, "no such file"),
        (["convert", "{hf}", "-o", "{file}"], 1, "exists"),
        (["convert", "{hf}", "-o", "no/such/folder/x"], 1, "No such file or directory"),
        (["inspect", "nowhere.aibit"], 1, "No such file"),
        (["inspect", "."], 1, "not a regular file"),
        (["inspect", "{text}"], 3, "AIB-E102"),
        (["run", "{text}", "hello"], 3, "AIB-E102"),
        (["extract", "{file}", "nothing.txt"], 1, "nothing called"),
        (["run", "{file}", "hello"], 1, "no tokenizer"),
        (["bench", "{text}"], 3, "AIB-E102"),
        (["bench", "{file}", "-p", "0"], 2, "'0' is not a positive number"),
        (["bench", "{file}", "-o", "xml"], 2, "invalid choice"),
        (["bench", "{file}", "-p", "60", "-n", "5"], 1, "60 and 5 tokens, the model takes 64"),
        (["frobnicate"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("not a model, only some text " * 9)
    places = {"hf": model / "hf", "file": model / "m.aibit", "text": tmp_path / "text"}
    found, out, err = run(*[a.format(**places) for a in arguments], capsys=capsys)
    assert found == status and message in err and out == ""
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_the_prompt_may_follow_options(fixtures, tmp_path, capsys):
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit")
    first = run("run", tmp_path / "m.aibit", "a b", "-n", "3", "--json", capsys=capsys)
    second = run("run", tmp_path / "m.aibit", "-n", "3", "--json", "a b", capsys=capsys)
    assert first[0] == second[0] == 0 and json.loads(first[1])["text"] == json.loads(second[1])["text"]
    for extra in (["a", "b"], ["--wrong"]):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "m.aibit"), "-n", "3", *extra, "c"])
        assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
