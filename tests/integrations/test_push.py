"""Files go to a hub through the real client."""

from __future__ import annotations

import os

import pytest
import torch
from huggingface_hub import constants

import aibit_format as aibit
from aibit_format.errors import FormatError, SourceError, WriteError
from aibit_format.integrations.card import MARK
from tests.support import architectures
from tests.support.hub import hub as hub


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    architectures.save("llama-untied", folder / "hf", torch.bfloat16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    return folder / "m.aibit"


@pytest.fixture(autouse=True)
def token(monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    return hub


def test_a_file_and_its_card_are_one_commit(hub, model):
    made = aibit.push(model, "me/m", license="mit")
    (commit,) = hub.repositories["me/m"]
    assert commit["m.aibit"] == model.read_bytes() and MARK in commit["README.md"].decode()
    assert "license: \"mit\"" in commit["README.md"].decode()
    assert made.files == ["m.aibit", "README.md"] and made.card and made.url.startswith(hub.endpoint)
    assert hub.messages == ["m.aibit, written by aibit"]


def test_it_comes_back(hub, model):
    aibit.push(model, "hf://me/m")
    with aibit.open("hf://me/m") as file, aibit.open(model) as original:
        assert file.root == original.root
    with open(aibit.load_model("hf://me/m").config.name_or_path or model, "rb") as file:
        assert file.read() == model.read_bytes()


def test_a_card_that_somebody_wrote_stays(hub, model):
    aibit.push(model, "me/m")
    assert aibit.push(model, "me/m", base_model="a/b").card  # its own is written anew
    assert b"a/b" in hub.repositories["me/m"][-1]["README.md"]
    hub.add("me/m", {"README.md": b"# Mine"})
    made = aibit.push(model, "me/m")
    assert not made.card and made.files == ["m.aibit"] and hub.repositories["me/m"][-1]["README.md"] == b"# Mine"
    assert aibit.push(model, "me/m", replace_card=True).card
    assert MARK.encode() in hub.repositories["me/m"][-1]["README.md"]


def test_all_shards_and_their_signatures_go(hub, model, tmp_path):
    shards = aibit.split(model, tmp_path / "s.aibit", "60kB")
    first = min(shards)
    (tmp_path / (os.path.basename(first) + ".sig")).write_bytes(b"a signature")
    made = aibit.push(first, "me/m")
    names = [os.path.basename(each) for each in shards]
    assert sorted(made.files) == sorted([*names, os.path.basename(first) + ".sig", "README.md"]) and len(names) > 1
    with aibit.open("hf://me/m") as file:
        assert len(file.parts) == len(names)


def test_a_damaged_file_does_not_go(hub, model, tmp_path):
    data = bytearray(model.read_bytes())
    data[-10_000] ^= 1
    (tmp_path / "m.aibit").write_bytes(data)
    with pytest.raises(FormatError):
        aibit.push(tmp_path / "m.aibit", "me/m")
    with pytest.raises(FormatError):
        aibit.push(tmp_path / "none.aibit", "me/m")
    assert "me/m" not in hub.repositories


@pytest.mark.parametrize("name", ["me", "me/m/x.aibit", "me/m@v1", "hf://me/m/x", "../m", "me/m m"])
def test_what_is_no_repository_is_refused(name, model):
    with pytest.raises((WriteError, SourceError), match="is not"):
        aibit.push(model, name)


def test_what_the_hub_refuses_is_explained(hub, model, monkeypatch):
    hub.refused["me/m"] = (403, "Forbidden")
    with pytest.raises(WriteError, match="hf://me/m: the hub's answer: 403 Forbidden"):
        aibit.push(model, "me/m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WriteError, match="HF_HUB_OFFLINE"):
        aibit.push(model, "me/m")
