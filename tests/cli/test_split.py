"""The command ``aibit split``, and ``merge``, which undoes it."""

from __future__ import annotations

import json
import os

from tests.support.command import run
from tests.support.sharded_models import model as model


def test_split_and_merge(model, tmp_path, capsys):
    status, out, err = run("split", model / "m.aibit", "-o", tmp_path / "s.aibit", "--max-shard-size", "33kB", "--json",
                           capsys=capsys)  # fmt: skip
    assert status == 0 and not err
    found = [entry["path"] for entry in json.loads(out)["files"]]
    assert len(found) == 4 and all(entry["bytes"] for entry in json.loads(out)["files"])
    status, out, _ = run("inspect", found[0], capsys=capsys)
    assert status == 0 and "s-00004-of-00004.aibit" in out and "shard." not in out
    status, out, _ = run("inspect", found[1], capsys=capsys)
    assert status == 0 and "shard 2 of 4 of a model" in out
    status, out, _ = run("inspect", found[0], "--json", capsys=capsys)
    rows = json.loads(out)["tensors"]
    assert {row["shard"] for row in rows} == {1, 2, 3, 4} and rows[-1]["alias_of"] and rows[-1]["shard"] == 1
    status, out, _ = run("verify", found[0], capsys=capsys)
    assert status == 0 and "valid" in out and "4 shards" in out
    status, out, _ = run("merge", found[0], "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 0 and out.startswith(str(tmp_path / "m.aibit"))
    assert (tmp_path / "m.aibit").read_bytes() == (model / "m.aibit").read_bytes()
    status, _, err = run("merge", found[0], "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 1 and "exists" in err
    assert run("merge", found[0], "-o", tmp_path / "m.aibit", "--force", capsys=capsys)[0] == 0
    status, _, err = run("merge", tmp_path / "m.aibit", "-o", tmp_path / "n.aibit", capsys=capsys)
    assert status == 1 and "is one file already" in err
    assert run("extract", found[0], "-o", tmp_path / "out", "--tensor", "model.norm.weight", capsys=capsys)[0] == 0
    status, _, err = run("run", found[1], "x", capsys=capsys)
    assert status == 1 and "s-00001-of-00004.aibit" in err
    os.unlink(found[2])
    status, _, err = run("merge", found[0], "-o", tmp_path / "n.aibit", capsys=capsys)
    assert status == 3 and found[2] in err and "AIB-E607" in err and not (tmp_path / "n.aibit").exists()
