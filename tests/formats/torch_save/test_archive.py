"""Archives of torch.save, of today and of old."""

from __future__ import annotations

import io
import json
import pathlib
import zipfile

import pytest
import torch
from safetensors.torch import load_file

import aibit_format as aibit
from aibit_format.convert.convert import convert
from aibit_format.formats.sources import open_source
from aibit_format.formats.torch_save import archive
from tests.support.saved_models import Evil, refused, same_files, with_config
from tests.support.saved_models import folder as folder
from tests.support.saved_models import saved as saved


def rezip(path: pathlib.Path, edit=lambda name, data: data, method=zipfile.ZIP_STORED) -> None:
    """Write a ZIP archive again, members changed."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in members.items():
            new.writestr(name, edit(name, data))


def test_an_archive_of_torch_that_contradicts_itself_is_refused(saved, folder):
    with_config(saved, folder)
    path = folder / "pytorch_model.bin"

    def saved_again(**options):
        torch.save({"a": torch.arange(100.0), "b": torch.ones(100)}, path)
        rezip(path, **options)

    saved_again(edit=lambda name, data: data[:-4] if name.endswith("data/0") else data)
    refused(folder, folder.parent, "'a': 400 bytes of storage at .*, where the archive has a member of 396")
    saved_again()
    refused(folder, folder.parent, "'b': 400 bytes of storage at .*, where the archive has no member")
    saved_again(method=zipfile.ZIP_DEFLATED)
    refused(folder, folder.parent, "is compressed, .* bytes for")
    saved_again()
    poke(path, "byteorder", 10, b"\x08")  # said to be deflated, which it is not
    refused(folder, folder.parent, "byteorder' is compressed, 6 bytes for 6")
    saved_again(edit=lambda name, data: b"big" if name.endswith("byteorder") else data)
    refused(folder, folder.parent, "byte order b'big'")
    torch.save({"a": torch.zeros(0, 5)}, path)
    rezip(path, edit=lambda name, data: data.replace(b"K\0K\5\x86", b"K\0J\xff\xff\xff\xff\x86"))
    refused(folder, folder.parent, r"shape \[0, -1\]")
    for content in (b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"\x80\x04.", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        refused(folder, folder.parent, "pytorch_model.bin")


def old_archive(path, saved, key="llama-8bit", method=zipfile.ZIP_STORED, **members) -> None:
    """What the proof of concept wrote; ``members`` come on top, ``None`` leaves one out."""
    state_dict = load_file(saved / key / "model.safetensors")
    stream = io.BytesIO()
    torch.save(state_dict, stream)
    said = json.loads((saved / key / "config.json").read_text())
    contents = {
        "model/weights.pt": stream.getvalue(),
        "config.json": json.dumps(said).encode(),
        "tokenizer/tokenizer.json": b"{}",
        "metadata.json": json.dumps({"format": "aibit", "config": said}).encode(),
    }
    for name, data in members.items():
        contents[name.replace("__", "/").replace("_json", ".json").replace("_pt", ".pt")] = data
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in contents.items():
            if data is not None:
                file.writestr(name, data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("key", ["llama-8bit", "gpt2-8bit"])
def test_the_old_archive_converts(method, key, saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, key, method)
    convert(tmp_path / "old.aibit", tmp_path / "a.aibit")
    convert(saved / key, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        assert set(file.documents) == {"config.json", "tokenizer.json"}
        assert file.metadata["source.kind"] == "archive" and list(file.metadata["source.files"]) == ["old.aibit"]


def test_the_config_may_be_in_the_description(saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, config_json=None)
    convert(tmp_path / "old.aibit", tmp_path / "a.aibit")
    convert(saved / "llama-8bit", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def poke(path: pathlib.Path, name: str, offset: int, data: bytes) -> None:
    """Change a member's entry in the central directory, ``offset`` bytes from its start."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    content[at + offset : at + offset + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"config_json": None, "metadata_json": None}, "no config.json"),
        ({"config_json": None, "metadata_json": b'{"config": "x"}'}, "config"),
        ({"config_json": b"[]"}, "config.json: a JSON list"),
        ({"config_json": b"{"}, "not JSON"),
        ({"model__weights_pt": None}, "0 state dicts"),
        ({"other_pt": b""}, r"2 state dicts \(weights.pt, other.pt\)"),
        ({"deep__config_json": b"{}"}, "two members 'config.json': 'config.json', 'deep/config.json'"),
        ({"model__weights_pt": b"junk"}, "old.aibit: model/weights.pt: refused by torch.load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_old_archive_that_is_incomplete_is_refused(members, message, saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, **members)
    refused(tmp_path / "old.aibit", tmp_path, message)


def test_a_hostile_archive_is_refused_with_numbers(saved, tmp_path, monkeypatch):
    path = tmp_path / "old.aibit"
    bomb = bytes(4 << 20)
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED, model__weights_pt=bomb)
    refused(path, tmp_path, rf"weights.pt': {4 << 20} bytes packed in \d+; at most .* and 100 times")
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED, LICENSE=bomb)
    refused(path, tmp_path, rf"LICENSE': {4 << 20} bytes packed in")
    old_archive(path, saved)
    poke(path, "config.json", 8, b"\x01\x00")
    refused(path, tmp_path, "config.json' has flags 0x1")
    old_archive(path, saved)
    poke(path, "config.json", 10, b"\x0c\x00")
    refused(path, tmp_path, "config.json' has .*compression 12")
    old_archive(path, saved)
    poke(path, "config.json", 24, b"\x05\x00\x00\x00")
    refused(path, tmp_path, "config.json': stored, but 5 bytes are in")
    old_archive(path, saved)
    poke(path, "config.json", 20, (1 << 30).to_bytes(4, "little") * 2)
    refused(path, tmp_path, "members of .* bytes in a file of")
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(40)
    path.write_bytes(content)
    refused(path, tmp_path, "weights.pt': damaged")
    path.write_bytes(path.read_bytes()[:-50])
    refused(path, tmp_path, "old.aibit: not a ZIP archive, or truncated")
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1000)
    old_archive(path, saved)
    open_source(path)  # mapped, not unpacked
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED)
    refused(path, tmp_path, "weights.pt': .* at most 1000")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    refused(path, tmp_path, "4 members .*at most 3")


def test_names_that_are_paths_stay_names(saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved)
    with zipfile.ZipFile(tmp_path / "old.aibit", "a") as file:
        file.writestr("../../tokenizer_config.json", "{}")
        file.writestr("/etc/evil.py", "x")
    assert set(open_source(tmp_path / "old.aibit").documents) == {
        "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_pickled_state_dict_in_an_archive_does_not_run(saved, tmp_path):
    stream = io.BytesIO()
    torch.save({"a": Evil(tmp_path / "trace")}, stream)
    old_archive(tmp_path / "old.aibit", saved, model__weights_pt=stream.getvalue())
    refused(tmp_path / "old.aibit", tmp_path, "weights.pt: refused by torch.load")
    assert not (tmp_path / "trace").exists()


def test_a_bare_torch_file_says_where_it_belongs(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path / "pytorch_model.bin", tmp_path, "0 state dicts .* into a directory with its config.json")
