"""aibit trim: what it prints, and ids both ways."""

import json

import pytest

import aibit_format as aibit
from aibit_format.cli import main
from tests.support import vocabularies
from tests.support.vocabularies import TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trim")
    vocabularies.save("byte-level", folder / "hf")
    (folder / "text.txt").write_text("\n".join(TEXT.splitlines()[:8]), encoding="utf-8")
    assert main(["trim", str(folder / "hf"), "-o", str(folder / "cut.aibit"), "--text", str(folder / "text.txt")]) == 0
    return folder


def test_a_table_and_lines(folder, capsys):
    assert main(["trim", str(folder / "hf"), "--dry-run", "--text", str(folder / "text.txt"), "--coverage", "0.9"]) == 0
    shown = capsys.readouterr().out
    assert (
        "kept for" in shown and "640 -> " in shown and "tokens a word" in shown and "lines have other tokens" in shown
    )
    assert not (folder / "x.aibit").exists()


def test_json(folder, capsys):
    out = folder / "json.aibit"
    arguments = ["--text", str(folder / "text.txt"), "--json", "--multiple", "1"]
    assert main(["trim", str(folder / "hf"), "-o", str(out), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows_before"] == found["size"] == 640 and found["rows"] == sum(found["reasons"].values()) < 640
    assert found["file_bytes"] == out.stat().st_size and found["texts"]["changed"] == 0
    assert main(["trim", str(folder / "hf"), "-o", str(out), *arguments]) == 1  # it exists


def test_ids_both_ways(folder, capsys):
    (folder / "ids").write_text("0 270 271")
    assert main(["trim", str(folder / "cut.aibit"), "--undo-ids", str(folder / "ids")]) == 0
    old = capsys.readouterr().out
    (folder / "old").write_text(old)
    assert main(["trim", str(folder / "cut.aibit"), "--map-ids", str(folder / "old"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == [0, 270, 271]
    with aibit.open(folder / "cut.aibit") as file:
        kept = file.metadata["vocabulary.size"]
    assert kept == 640 and old.split()[0] == "0"


def test_usage(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["trim", str(folder / "hf"), "--text", str(folder / "text.txt")])
    assert caught.value.code == 2 and "-o OUT" in capsys.readouterr().err
    assert main(["trim", str(folder / "hf"), "-o", str(folder / "x.aibit")]) == 2
    assert "nothing says which tokens to keep" in capsys.readouterr().err
