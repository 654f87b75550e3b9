"""``aibit push``, and names on a hub where commands take paths; as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import aibit_format as aibit
from tests.support import architectures
from tests.support.hub import Hub


@pytest.fixture(scope="module")
def hub():
    made = Hub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    architectures.save("llama-untied", folder / "hf", torch.bfloat16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    return folder


@pytest.fixture
def aibit_command(hub, tmp_path):
    def run(*arguments):
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_x",
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)  # as people have it
        command = [sys.executable, "-m", "aibit_format", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_way_there_and_back(hub, model, aibit_command, tmp_path):
    made = aibit_command("push", model / "m.aibit", "me/m", "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["files"] == ["m.aibit", "README.md"] and not made.stderr
    found = aibit_command("inspect", "hf://me/m", "--json")
    with aibit.open(model / "m.aibit") as file:
        assert json.loads(found.stdout)["root"] == file.root
    hub.seen.clear()
    again = aibit_command("convert", "me/m", "-o", tmp_path / "n.aibit", "--scheme", "nf4")
    assert again.returncode == 0, again.stderr
    downloads = [path for method, path, _ in hub.seen if method == "GET" and "/resolve/" in path]
    assert len(downloads) == 1 and downloads[0].endswith("m.aibit")
    assert not [path for _, path, _ in hub.seen if "me/m" not in path]  # no library asks for anything else


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("push", "m.aibit", "me"), 1, "'hf://me' is not hf://owner/name[/file][@revision]"),
        (("push", "none.aibit", "me/m"), 1, "none.aibit: cannot be opened"),
        (("run", "hf://me/none", "hello"), 1, "hf://me/none: is not there, or private"),
        (("convert", "me/none", "-o", "x.aibit"), 1, "me/none: no such file or directory; on the hub, hf://me/none"),
        (("push", "m.aibit"), 2, "REPO"),
    ],
)
def test_wrong_names(arguments, status, message, model, aibit_command, monkeypatch):
    monkeypatch.chdir(model)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.path.dirname(os.path.dirname(aibit.__file__))])))
    found = aibit_command(*arguments)
    assert found.returncode == status and message in found.stderr and "Traceback" not in found.stderr
