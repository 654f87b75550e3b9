"""The command ``aibit compare``."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from tests.support.command import run


@pytest.fixture(scope="module")
def files(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    original = fixtures / "models" / "tiny-llama"
    aibit.convert(original, folder / "bf16.aibit", scheme="bf16")
    aibit.convert(original, folder / "q2.aibit", scheme="cluster", overwrite=False)
    return original, folder / "bf16.aibit", folder / "q2.aibit"


def test_texts_are_shown_one_below_another(files, capsys):
    status, out, err = run("compare", *files, "-p", "A list is", "-p", "The ", "-n", 12, capsys=capsys)
    assert (status, err) == (0, "") and out.count("> ") == 2
    first, second = out.split("\n\n> ")
    for part in (first, second):
        assert f"{files[0]}:\n    " in part and f"{files[1]} (the same):\n    " in part
    assert f"{files[2]} (parts after " in out


def test_json_says_where_texts_part(files, tmp_path, capsys):
    (tmp_path / "prompts").write_text("A list is\n\nThe \n", "utf-8")
    arguments = ("--prompt-file", tmp_path / "prompts", "-n", 12, "--json")
    status, out, _ = run("compare", *files, *arguments, capsys=capsys)
    found = json.loads(out)["prompts"]
    assert status == 0 and [each["prompt"] for each in found] == ["A list is", "The "]
    for each in found:
        original, same, other = each["texts"]
        assert original["ids"] == same["ids"] and same["shared"] == len(same["ids"]) <= 12
        assert other["ids"][: other["shared"]] == original["ids"][: other["shared"]]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "MODEL"),
        (["{file}"], 2, "two models or more"),
        (["{file}", "{file}", "--prompt-file", "{empty}"], 1, "holds no prompt"),
        (["{file}", "{file}", "--prompt-file", "{latin}"], 1, "no UTF-8 at byte 1"),
        (["{file}", "{file}", "-n", "0"], 2, "--max-new-tokens"),
        (["{file}", "{empty}"], 3, "AIB-E101"),
        (["{file}", "{file}", "-p", "{long}"], 1, "the model takes 1 to 255"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, files, tmp_path, capsys):
    (tmp_path / "latin").write_bytes("a\u00e9".encode("latin-1"))
    (tmp_path / "empty").touch()
    places = {"file": files[1], "empty": tmp_path / "empty", "latin": tmp_path / "latin", "long": "queue " * 400}
    found, out, err = run("compare", *[argument.format(**places) for argument in arguments], capsys=capsys)
    assert found == status and message in err and out == "" and "Traceback" not in err
