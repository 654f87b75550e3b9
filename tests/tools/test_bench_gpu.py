"""The script for a GPU, without one: every section on a CPU, what it does when one fails, and when time is short."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

SECTIONS = ["correct", "link", "warm", "load", "decode", "products", "cold", "compiled"]


def run(*arguments) -> subprocess.CompletedProcess:
    # One thread: two that wait for each other at every operation are slower, where others are at work.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.bench.gpu", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    ended = run("--work", folder / "work", "--out", folder / "gpu.json", "--gigabytes", 0.004)
    return ended, json.loads((folder / "gpu.json").read_text())


def test_every_section_runs_on_a_cpu_and_the_table_comes_last(whole):
    ended, found = whole
    assert found["failed"] == {} and list(found["seconds"]) == SECTIONS, ended.stderr
    assert {row["section"] for row in found["rows"]} == set(SECTIONS)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("| section | what | value")
    assert len([line for line in lines if line.startswith("| ")]) == len(found["rows"]) + 1
    assert lines[-1].startswith("- seconds: ")


def test_what_must_be_equal_is(whole):
    _, found = whole
    rows = {row["what"]: row for row in found["rows"] if row["section"] == "correct"}
    for scheme in ("int8", "nf4"):
        for what in ("planes that arrived with other bytes", "largest difference to the same bytes in transformers"):
            assert rows[f"{scheme}: {what}"]["value"] == 0 and rows[f"{scheme}: {what}"]["met"]
        # Encoders on a CPU agree to the last code; on a GPU, rarely one is off by one.
        assert rows[f"{scheme}: codes that differ from those made here"]["value"] == 0
    assert all(row["met"] for row in rows.values() if "wanted" in row)
    assert "memory" not in " ".join(rows)  # a CPU has none of its own to measure


def test_nothing_of_this_machine_is_told(whole):
    ended, found = whole
    assert "/" not in "".join(found["failed"].values()) and os.path.expanduser("~") not in json.dumps(found)
    assert found["machine"]["gpu"] is None and found["machine"]["large_file_bytes"] == 4_000_000
    assert ended.returncode == 1  # 45 GB/s are wanted, of a GPU


@pytest.fixture
def script():
    from tools.bench import gpu

    return gpu


def settings(script, tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(tmp_path / "gpu.json"), "--work",
                                      str(tmp_path / "work"), *arguments])  # fmt: skip
    return script.Run(script.arguments())


def test_a_section_that_fails_is_recorded_and_the_others_go_on(script, tmp_path, monkeypatch):
    made = settings(script, tmp_path, monkeypatch)

    def fails(run) -> None:
        raise RuntimeError(f"CUDA error: no kernel for {run.work}\nand a page of advice")

    def goes(run) -> None:
        run.note("a rate", 2.0, "GB/s", ">= 45")

    monkeypatch.setattr(script, "SECTIONS", {"fails": fails, "goes": goes})
    assert list(script.sections(made, ["fails", "goes"])) == ["fails", "goes"]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {"fails": "RuntimeError: CUDA error: no kernel for WORK"}
    (row,) = found["rows"]
    assert row["section"] == "goes" and row["met"] is False
    text = script.table(found)
    assert "| goes | a rate | 2.00 | GB/s | >= 45 | NO |" in text and "- FAILED: fails: RuntimeError" in text


def test_without_time_sections_are_left_out_and_said_to_be(script, tmp_path, monkeypatch):
    made = settings(script, tmp_path, monkeypatch, "--budget", "0")
    list(script.sections(made, SECTIONS))
    assert made.found["rows"] == [] and made.found["failed"] == {}
    assert list(made.found["left_out"]) == SECTIONS and "no time" in made.found["left_out"]["warm"]


def test_unknown_sections_and_missing_devices_are_usage_errors(script, monkeypatch, capsys):
    for arguments, why in ([["nothing"], "no such section: nothing"], [[], "sees no CUDA device"]):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as ended:
            script.arguments()
        assert ended.value.code == 2 and why in capsys.readouterr().err
