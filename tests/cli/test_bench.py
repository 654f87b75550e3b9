"""The command ``aibit bench``."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import torch

import aibit_format as aibit
from tests.support import architectures
from tests.support.command import run
from tests.support.command_models import model as model


def test_bench_measures_what_there_is_to_wait_for(model, capsys):
    """Markdown, JSON and CSV say the same; prompts and tokens are those that were asked for."""
    asked = ("bench", model / "m.aibit", "-p", "12", "-n", "3", "-b", "2", "-r", "2", "--weight-only")
    status, out, err = run(*asked, capsys=capsys)
    assert (status, err) == (0, "")
    tests = ["open", "verify", "load", "pp12", "tg3"]
    lines = out.splitlines()
    assert "most in int8" in lines[0] and "batch 2, weight only" in lines[1]
    assert [line.split(" | ")[0].strip("| ") for line in lines[5:]] == tests
    status, out, _ = run(*asked, "--json", capsys=capsys)
    found = json.loads(out)
    with aibit.open(model / "m.aibit") as file:
        stored = [file.info(name) for name in file if file.info(name).alias_of is None]
    assert found["bytes"] == os.path.getsize(model / "m.aibit") and found["scheme"] == "int8" and found["weight_only"]
    assert found["parameters"] == sum(int(np.prod(info.shape)) for info in stored)
    assert [test["test"] for test in found["tests"]] == tests
    assert all(len(test["samples"]) == 2 and min(test["samples"]) > 0 for test in found["tests"])
    status, out, _ = run(*asked, "-o", "csv", capsys=capsys)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["test"] for row in rows] == tests and float(rows[0]["least"]) <= float(rows[0]["median"])


def test_bench_says_so_where_nothing_continues_a_prompt(tmp_path, capsys):
    architectures.save("bert", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    status, out, err = run("bench", tmp_path / "m.aibit", "-r", "1", capsys=capsys)
    assert status == 1 and out == "" and "BertModel does not continue a prompt" in err
