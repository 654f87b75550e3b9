"""Names on a hub: what they are, what is downloaded, what is read by ranges, what goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import aibit_format as aibit
from aibit_format.errors import MissingPackageError, SourceError
from aibit_format.io import hub as names
from aibit_format.io.hub import Name, local, origin_of, parse, remote
from tests.support import architectures
from tests.support.hub import hub as hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The files of a small checkpoint, and an ``.aibit`` file made of it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    architectures.save("llama-untied", folder / "hf", torch.bfloat16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    return {each.name: each.read_bytes() for each in (folder / "hf").iterdir()}, (folder / "m.aibit").read_bytes()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://o/n", Name("o/n")),
        ("hf://o/n/a.aibit", Name("o/n", "a.aibit")),
        ("hf://o/n/x/a.aibit@v1", Name("o/n", "x/a.aibit", "v1")),
        ("hf://o/n@refs/pr/1", Name("o/n", None, "refs/pr/1")),
        ("hf://o/n@v1/a.aibit", Name("o/n", "a.aibit", "v1")),
        ("o/n", Name("o/n")),
        ("o/n@v1", Name("o/n", None, "v1")),
        ("https://huggingface.co/o/n", Name("o/n")),
        ("https://huggingface.co/o/n/blob/main/x/a.gguf", Name("o/n", "x/a.gguf", "main")),
        ("https://huggingface.co/o/n/resolve/v1/a.gguf", Name("o/n", "a.gguf", "v1")),
        ("https://huggingface.co/o/n/tree/v1", Name("o/n", None, "v1")),
        ("https://example.org/o/n", None),
        ("https://huggingface.co/docs", None),
        ("./o/n", None),
        ("/o/n", None),
        ("o/n.aibit", None),
        ("o/n/m", None),
        ("model.aibit", None),
        ("", None),
    ],
)
def test_names(text, name, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert parse(text) == name
    if name is not None:
        assert parse(str(name)) == name


def test_a_path_that_exists_is_no_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o" / "n").mkdir(parents=True)
    assert parse("o/n") is None and local("o/n") == "o/n"
    assert parse("hf://o/n") == Name("o/n")


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://o", "hf://o/n/", "hf://o/n/../m", "hf://o/n//m", "hf://o/n@", "hf://o/n@a/m@b", "hf://o/n m"],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(SourceError, match=r"is not hf://owner/name\[/file\]\[@revision\]"):
        parse(text)


def test_a_checkpoint_is_downloaded_without_what_it_does_not_need(hub, checkpoint):
    files, _ = checkpoint
    more = {"pytorch_model.bin": b"junk", "onnx/model.onnx": b"junk", "README.md": b"# Hi", "tf_model.h5": b"junk"}
    commit = hub.add("o/n", files | more)
    told: list[tuple[int, int, str]] = []
    path = local("o/n", on_progress=lambda *each: told.append(each))
    assert sorted(os.listdir(path)) == sorted([*files, "README.md"])
    assert told[-1][0] == told[-1][1] == sum(map(len, files.values())) + 4
    assert origin_of(path) == Name("o/n", None, commit)
    assert sum("main" in seen for method, seen, _ in hub.seen if "/resolve/" in seen and method == "GET") <= 1


def test_what_is_made_of_it_says_where_it_came_from(hub, checkpoint, tmp_path):
    commit = hub.add("o/n", checkpoint[0])
    aibit.convert("hf://o/n", tmp_path / "m.aibit", scheme="nf4")
    aibit.convert(tmp_path / "m.aibit", tmp_path / "again.aibit", scheme="int8")
    for name in ("m.aibit", "again.aibit"):
        with aibit.open(tmp_path / name) as file:
            assert file.metadata["source.repository"] == "o/n" and file.metadata["source.revision"] == commit


def test_an_earlier_revision(hub, checkpoint):
    first = hub.add("o/n", {"m.aibit": b"old"})
    hub.add("o/n", {"m.aibit": checkpoint[1]})
    with open(local(f"hf://o/n/m.aibit@{first}"), "rb") as file:
        assert file.read() == b"old"
    with open(local("hf://o/n"), "rb") as file:  # the one file that the repository has
        assert file.read() == checkpoint[1]


def test_a_download_that_broke_off_goes_on(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("o/n", {"m.aibit": bytes(range(256)) * 1000})
    hub.break_after["m.aibit"] = 100_000
    with open(local("hf://o/n/m.aibit"), "rb") as file:
        assert file.read() == bytes(range(256)) * 1000
    ranges = [range_ for method, path, range_ in hub.seen if method == "GET" and path.endswith("m.aibit")]
    assert ranges[0] is None and ranges[1] == "bytes=100000-"


def test_shards_and_signatures_come_along(hub, checkpoint, tmp_path):
    (tmp_path / "m.aibit").write_bytes(checkpoint[1])
    shards = aibit.split(tmp_path / "m.aibit", tmp_path / "s.aibit", "60kB")
    files = {os.path.basename(each): Path(each).read_bytes() for each in shards}
    first = min(files)
    hub.add("o/n", files | {first + ".sig": b"signature", "other.sig": b""})
    path = local("hf://o/n")
    assert sorted(os.listdir(os.path.dirname(path))) == sorted([*files, first + ".sig"])
    with aibit.open(path) as file:
        assert len(file.parts) == len(files) > 1
    hub.add("o/m", {name: data for name, data in files.items() if name != max(files)})
    with pytest.raises(SourceError, match=rf"1 of {len(files)} shards are not there; the first: {max(files)}"):
        local(f"hf://o/m/{first}")


def test_a_file_is_looked_at_by_ranges(hub, checkpoint):
    big = checkpoint[1]
    commit = hub.add("o/n", {"m.aibit": big})
    assert remote("hf://o/n") == f"hf://o/n@{commit}/m.aibit"
    with aibit.open("hf://o/n") as file:
        assert file.metadata["model.type"] == "llama" and len(file) > 10
    assert all(range_ for method, path, range_ in hub.seen if "/resolve/" in path)


def test_a_model_runs(hub, checkpoint):
    hub.add("o/n", {"m.aibit": checkpoint[1]})
    model = aibit.load_model("hf://o/n/m.aibit")
    assert model(torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)


def test_without_a_network_the_cache_serves(hub, checkpoint, monkeypatch):
    hub.add("o/n", {"m.aibit": checkpoint[1]} | {"README.md": b"# Hi"})
    path = local("hf://o/n/m.aibit")
    hub.close()
    assert local("hf://o/n/m.aibit") == path and local("o/n") == path
    with pytest.raises(SourceError, match="is not in the cache, and"):
        local("hf://o/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://o/none", "is not there, or private: check the name, or log in with: hf auth login"),
        ("hf://o/n@v9", "has no such revision"),
        ("hf://o/n/x.aibit", "the repository has no such file; it has a.aibit, b.gguf, c.txt"),
        ("hf://o/n", "holds 2 models in a file of their own; name one: hf://o/n/a.aibit"),
        ("hf://o/empty", "holds 0 models in a file of their own"),
        ("hf://o/gated", "is gated: accept its terms on the hub"),
        ("hf://o/broken", "the hub's answer: "),
        ("o/none", "o/none: no such file or directory; on the hub, hf://o/none: is not there"),
    ],
)
def test_what_the_hub_refuses_is_explained(name, message, hub):
    hub.add("o/n", {"a.aibit": b"", "b.gguf": b"", "c.txt": b""})
    hub.add("o/empty", {"c.txt": b""})
    hub.refused = {"o/gated": (403, "GatedRepo"), "o/broken": (400, "Strange")}
    with pytest.raises(SourceError) as caught:
        aibit.convert(name, "never.aibit")
    assert message in str(caught.value)


def test_a_checkpoint_cannot_be_looked_at(hub, checkpoint):
    hub.add("o/n", checkpoint[0])
    with pytest.raises(SourceError, match="a checkpoint, not a file; make one of it: aibit convert hf://o/n@"):
        aibit.open("hf://o/n")


def test_the_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'aibit-format\[hub\]'"):
        names.local("hf://o/n")
    with pytest.raises(SourceError, match=r"o/n: no such file or directory; on the hub, .*aibit-format\[hub\]"):
        names.local("o/n")


def test_an_address_elsewhere_is_no_source(tmp_path):
    with pytest.raises(SourceError, match="download it first"):
        aibit.convert("https://example.org/m.gguf", tmp_path / "m.aibit")
