"""Metadata and documents changed in a copy, and what differs between two models."""

from __future__ import annotations

import json
import os
import pathlib

import architectures
import craft
import numpy as np
import pytest
import torch
from test_cli import run

import aibit_format as aibit
from aibit_format.container.tables import ExtraSection
from aibit_format.errors import FormatError, WriteError
from aibit_format.file import rewrite, sharded_reader, writer
from aibit_format.file.diff import Difference, diff
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with ``m.aibit``, a tied Llama in int8, ``nf4.aibit``, and its shards."""
    folder = tmp_path_factory.mktemp("edit")
    architectures.save("llama-tied", folder / "hf", torch.float16)
    aibit.convert(folder / "hf", folder / "m.aibit")
    aibit.convert(folder / "hf", folder / "nf4.aibit", scheme="nf4")
    rewrite.split(folder / "m.aibit", folder / "s.aibit", 40_000)
    return folder


def compared(a, b):
    with sharded_reader.open(a, "touched") as x, sharded_reader.open(b, "touched") as y:
        return diff(x, y)


# --- edit


def test_metadata_and_documents_change_and_nothing_else(model, tmp_path):
    out = tmp_path / "out.aibit"
    text = b"free\n"
    assert rewrite.edit(
        model / "m.aibit", out, metadata={"author.name": "we", "tool.version": "9"}, unset=["quantization.recipe"],
        documents={"LICENSE": text}, remove=["generation_config.json"],
    ) == [str(out)]  # fmt: skip
    before, after = aibit.open(model / "m.aibit"), aibit.open(out, "full")
    assert after.metadata["author.name"] == "we" and after.metadata["tool.version"] == "9"
    assert set(before.metadata) - set(after.metadata) == {"quantization.recipe"}
    assert bytes(after.documents["LICENSE"]) == text and "generation_config.json" not in after.documents
    found = compared(model / "m.aibit", out)
    assert [(d.kind, d.name) for d in found] == [
        ("metadata", "author.name"), ("metadata", "quantization.recipe"), ("metadata", "tool.version"),
        ("document", "LICENSE"), ("document", "generation_config.json"),
    ]  # fmt: skip
    assert found[3] == Difference("document", "LICENSE", None, len(text))
    # Changed back, it is the same file.
    rewrite.edit(
        out, tmp_path / "back.aibit", unset=["author.name"], remove=["LICENSE"],
        metadata={key: before.metadata[key] for key in ("tool.version", "quantization.recipe")},
        documents={"generation_config.json": bytes(before.documents["generation_config.json"])},
    )  # fmt: skip
    assert (tmp_path / "back.aibit").read_bytes() == (model / "m.aibit").read_bytes()


def test_shards_stay_shards(model, tmp_path):
    first = sorted(model.glob("s-*.aibit"))[0]
    found = rewrite.edit(first, tmp_path / "t.aibit", metadata={"author.name": "we"})
    old, new = sharded_reader.open(first), sharded_reader.open(found[0], "full")
    assert len(found) == len(old.parts) > 1 and [p.keys() for p in new.parts] == [p.keys() for p in old.parts]
    assert [d.name for d in diff(old, new)] == ["author.name"]
    for path, before in zip(found[1:], old.parts[1:], strict=True):  # nothing in these has changed
        assert pathlib.Path(path).read_bytes() == pathlib.Path(before.path).read_bytes()


def test_what_would_break_a_rule_is_refused_and_nothing_is_left(model, tmp_path):
    out = tmp_path / "out.aibit"
    cases = [
        ({"metadata": {"model.parameters": 1}}, "AIB-E310"), ({"metadata": {"model.parameters": "many"}}, "AIB-E309"),
        ({"metadata": {"NoNamespace": 1}}, "AIB-E302"), ({"metadata": {"author.name": "a\0b"}}, "AIB-E207"),
        ({"unset": ["source.files"]}, "AIB-E310"), ({"remove": ["config.json"]}, "AIB-E310"),
        ({"documents": {"../up": b""}}, "AIB-E701"), ({"documents": {"config.json": b"{"}}, "AIB-E705"),
        ({"documents": {"config.json": b'{"auto_map": {}}'}}, "AIB-E706"),
        ({"unset": ["author.name"]}, "has no metadata key 'author.name'"), ({"remove": ["x"]}, "has no document 'x'"),
        ({"metadata": {"shard.index": 1}}, "set by split and merge"),
    ]  # fmt: skip
    for options, message in cases:
        with pytest.raises(WriteError, match=message):
            rewrite.edit(model / "m.aibit", out, **options)
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_never_the_output(model, tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes((model / "m.aibit").read_bytes())
    os.link(path, tmp_path / "same.aibit")
    for out in (path, tmp_path / "same.aibit"):
        with pytest.raises(WriteError, match="is what is being read"):
            rewrite.edit(path, out, metadata={"author.name": "we"}, overwrite=True)
    assert path.read_bytes() == (model / "m.aibit").read_bytes() and len(list(tmp_path.iterdir())) == 2


def test_damage_is_not_copied(model, tmp_path):
    data = bytearray((model / "m.aibit").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m.aibit").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        rewrite.edit(tmp_path / "m.aibit", tmp_path / "out.aibit", metadata={"author.name": "we"})
    assert caught.value.code == "AIB-E602" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FormatError):
        compared(model / "m.aibit", tmp_path / "m.aibit")


def test_sections_that_are_not_known_stay_behind(fixtures, tmp_path):
    path = fixtures / "container" / "extra-section.aibit"
    assert isinstance(aibit.open(path).info_of_file.extra[0], ExtraSection)
    rewrite.edit(path, tmp_path / "out.aibit", metadata={"author.name": "we"})
    assert aibit.open(tmp_path / "out.aibit", "full").info_of_file.extra == ()


def test_edit_on_the_command_line(model, tmp_path, capsys):
    out = tmp_path / "out.aibit"
    (tmp_path / "text").write_bytes(b"free\n")
    settings = {
        "a.int": ("7", 7), "a.negative": ("-1", -1), "a.float": ("0.5", 0.5), "a.bool": ("true", True),
        "a.text": ("two words = more", "two words = more"), "a.quoted": ('"7"', "7"), "a.empty": ("", ""),
        "a.ints": ("[1, 2]", [1, 2]), "a.floats": ("[1, 0.5]", [1.0, 0.5]), "a.texts": ('["x", "y"]', ["x", "y"]),
        "a.nan": ("NaN", "NaN"), "a.none": ("[]", []), "tool.version": ("1.5", "1.5"),
        "model.type": ('"quoted"', "quoted"),
        "quantization.outlier_threshold": ("5", 5.0),
    }  # fmt: skip
    arguments = [part for key, (text, _) in settings.items() for part in ("--set", f"{key}={text}")]
    arguments += ["--document", f"LICENSE={tmp_path / 'text'}", "--unset", "tool.libraries", "--json"]
    status, text, err = run("edit", model / "m.aibit", "-o", out, *arguments, capsys=capsys)
    assert status == 0 and not err
    assert json.loads(text) == {"files": [{"path": str(out), "bytes": out.stat().st_size}]}
    file = aibit.open(out)
    for key, (_, value) in settings.items():
        found = file.metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
        assert isinstance(found, np.ndarray) or type(found) is type(value)
    assert bytes(file.documents["LICENSE"]) == b"free\n" and "tool.libraries" not in file.metadata
    status, _, err = run("edit", model / "m.aibit", "-o", out, "--unset", "tool.name", capsys=capsys)
    assert status == 1 and "exists" in err
    assert run("edit", model / "m.aibit", "-o", out, "--unset", "tool.name", "--force", capsys=capsys)[0] == 0
    missing = ["--document", f"x={tmp_path / 'none'}"]
    assert run("edit", model / "m.aibit", "-o", tmp_path / "y", *missing, capsys=capsys)[0] == 1
    (tmp_path / "bad").write_bytes(b"\x89aibit\r\n\x1a\n")
    assert run("edit", tmp_path / "bad", "-o", tmp_path / "y", "--unset", "a.b", capsys=capsys)[0] == 3
    assert run("edit", tmp_path / "none", "-o", tmp_path / "y", "--unset", "a.b", capsys=capsys)[0] == 1
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("arguments", [
    [], ["--set", "a.b"], ["--set", "=1"], ["--set", "a.b={}"], ["--set", "a.b=null"], ["--set", "a.b=[1, true]"],
    ["--set", "a.b=[[1]]"], ["--document", "x"], ["--set", "a.b=1", "--set", "a.b=2"],
    ["--set", "a.b=1", "--unset", "a.b"],
])  # fmt: skip
def test_wrong_arguments_of_edit(arguments, model, tmp_path, capsys):
    status, _, err = run("edit", model / "m.aibit", "-o", tmp_path / "x", *arguments, capsys=capsys)
    assert status == 2 and "usage:" in err and not (tmp_path / "x").exists()


# --- diff


def test_layout_and_shards_are_no_difference(model, fixtures, tmp_path):
    assert compared(model / "m.aibit", sorted(model.glob("s-*.aibit"))[0]) == []
    tensor = Tensor("w", (8, 600), "f32", make("f32"))
    planes = {"values": craft.values("f32", (8, 600))}
    for alignment in (64, 4096):
        writer.write(tmp_path / f"{alignment}", {tensor: planes}, alignment=alignment)
    assert compared(tmp_path / "64", tmp_path / "4096") == []


def test_tensors_that_differ(tmp_path):
    def file(name, **tensors):
        content = {}
        for key, (scheme, values) in tensors.items():
            kind = make(scheme)
            planes = {"values": values} if scheme == "f32" else kind.encode(values, "f32")  # not finite ones, too
            content[Tensor(key, values.shape, "f32", kind)] = planes
        writer.write(tmp_path / name, content)
        return tmp_path / name

    x = np.array([[3, 4], [0, 0]], np.float32)
    up = np.array([[0, 1], [0, 0]], np.float32)
    nan = np.array([[np.nan, np.inf], [0, 0]], np.float32)
    a = file("a", same=("f32", x), moved=("f32", x), other=("f32", x), shape=("f32", x), gone=("f32", x),
             odd=("f32", nan), finer=("int8", x), zero=("f32", x * 0), nan=("f32", nan))  # fmt: skip
    b = file("b", moved=("f32", x), same=("f32", x), other=("f32", x + up), shape=("f32", x[:1]),
             odd=("f32", x), finer=("f32", x), zero=("f32", x), nan=("f32", nan + 0), new=("int8", x))  # fmt: skip
    found = compared(a, b)
    assert found[0] == Difference("order", "tensors", "same", "moved")
    assert Difference("planes", "other", ["values"], ["values"]) in found
    assert Difference("values", "other", 0.2, 1.0) in found
    assert Difference("shape", "shape", (2, 2), (1, 2)) in found
    assert Difference("tensor", "gone", "f32 [2, 2]", None) in found
    assert Difference("tensor", "new", None, "int8 [2, 2]") in found
    assert Difference("values", "odd", None, None) in found and Difference("values", "zero", None, 4.0) in found
    assert Difference("scheme", "finer", "int8", "f32") in found
    error = next(d for d in found if (d.kind, d.name) == ("values", "finer"))
    assert 0 < error.a < 0.01 and 0 < error.b < 0.04
    assert not {"same", "moved", "nan"} & {d.name for d in found}


def test_diff_on_the_command_line(model, tmp_path, capsys):
    first = sorted(model.glob("s-*.aibit"))[0]
    status, out, err = run("diff", model / "m.aibit", first, capsys=capsys)
    assert (status, out, err) == (0, "the same metadata, documents and tensors\n", "")
    status, out, _ = run("diff", model / "m.aibit", model / "nf4.aibit", capsys=capsys)
    assert status == 1 and "scheme model.layers.0.mlp.up_proj.weight: int8 -> nf4" in out
    assert "relative rms error 0.1" in out and "metadata quantization.recipe: " in out
    status, out, _ = run("diff", model / "m.aibit", model / "nf4.aibit", "--json", capsys=capsys)
    report = json.loads(out)
    assert status == 1 and report["same"] is False
    assert {d["kind"] for d in report["differences"]} == {"metadata", "scheme", "values"}
    status, out, _ = run("diff", first, first, "--json", capsys=capsys)
    assert status == 0 and json.loads(out) == {"same": True, "differences": []}
    (tmp_path / "bad").write_bytes(b"\x89aibit\r\n\x1a\n")
    assert run("diff", first, tmp_path / "bad", capsys=capsys)[0] == 3
    assert run("diff", first, tmp_path / "none", capsys=capsys)[0] == 1
    assert run("diff", first, capsys=capsys)[0] == 2
