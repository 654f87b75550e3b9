"""Metadata and documents changed in a copy, and what differs between two models."""

from __future__ import annotations

import os
import pathlib

import pytest

import aibit_format as aibit
from aibit_format.container.tables import ExtraSection
from aibit_format.errors import FormatError, WriteError
from aibit_format.file import rewrite, sharded_reader
from aibit_format.file.diff import Difference, diff
from tests.support.edited_models import compared
from tests.support.edited_models import model as model

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


def test_damage_is_neither_hidden_nor_found_by_an_edit(model, tmp_path):
    """The copy has the digests of the bytes as they were; what checks them finds it in both files (W13.1)."""
    data = bytearray((model / "m.aibit").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m.aibit").write_bytes(data)
    rewrite.edit(tmp_path / "m.aibit", tmp_path / "out.aibit", metadata={"author.name": "we"})
    for path in (tmp_path / "m.aibit", tmp_path / "out.aibit"):
        with pytest.raises(FormatError) as caught:
            aibit.open(path, "full")
        assert caught.value.code == "AIB-E602"
        with pytest.raises(FormatError):
            compared(model / "m.aibit", path)


def test_a_damaged_document_is_not_copied(model, tmp_path):
    data = bytearray((model / "m.aibit").read_bytes())
    data[aibit.open(model / "m.aibit").tables.documents["config.json"].offset + 1] ^= 1
    (tmp_path / "m.aibit").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        rewrite.edit(tmp_path / "m.aibit", tmp_path / "out.aibit", metadata={"author.name": "we"})
    assert caught.value.code == "AIB-E602" and len(list(tmp_path.iterdir())) == 1


def test_sections_that_are_not_known_stay_behind(fixtures, tmp_path):
    path = fixtures / "container" / "extra-section.aibit"
    assert isinstance(aibit.open(path).tables.extra[0], ExtraSection)
    rewrite.edit(path, tmp_path / "out.aibit", metadata={"author.name": "we"})
    assert aibit.open(tmp_path / "out.aibit", "full").tables.extra == ()
