"""Slack in the front matter: room that changes take, so that nothing after it moves."""

from __future__ import annotations

import os

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.container import layout
from aibit_format.container.plan import ROOM, Tensor, placed, plan
from aibit_format.file import rewrite, signing
from aibit_format.file.reader import File
from aibit_format.schemes import make
from tests.support.signed_files import keys as keys
from tools.conformance.python_1_0.reader import File as FileOf10
from tools.conformance.python_1_0.reader import verify as verify_as_10

TENSORS = [Tensor("a", (64, 64), "f32", make("int8")), Tensor("b", (64,), "f32", make("f32"))]


def slack_of(path):
    section = File(path).tables.section(layout.SLACK)
    return None if section is None else len(section.data)


def after_front(path):
    with File(path) as file:
        return os.path.getsize(path), file.tables.front_matter_length, file.storage.read_at(
            128 + file.tables.front_matter_length, file.size - 128 - file.tables.front_matter_length
        ).tobytes()  # fmt: skip


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.aibit"
    aibit.convert(fixtures / "models" / "tiny-llama", path)
    return path


def test_a_converted_file_has_room_for_its_first_signature_and_changes_of_metadata(model, keys, tmp_path):
    leaves = len(File(model).tables.leaves)
    assert slack_of(model) == -(-leaves * 32 // 64) * 64 + 832 + 64 + ROOM
    edited, signed, both = tmp_path / "edited", tmp_path / "signed", tmp_path / "both"
    rewrite.edit(model, edited, metadata={"author.notes": "n" * 3000})
    signing.sign(edited, keys / "a.pem", signed)
    signing.sign(signed, keys / "b.pem", both)
    assert after_front(model) == after_front(edited) == after_front(signed) == after_front(both)
    assert slack_of(both) == slack_of(signed) < slack_of(edited) < slack_of(model)
    rewrite.edit(both, tmp_path / "back", unset=["author.notes"])
    assert (tmp_path / "back").read_bytes() == model.read_bytes()


def test_where_the_slack_is_too_short_there_is_new_room(model, tmp_path):
    rewrite.edit(model, tmp_path / "long", metadata={"author.notes": "n" * 20_000})
    assert slack_of(tmp_path / "long") == slack_of(model)
    assert after_front(tmp_path / "long")[1] > after_front(model)[1]
    assert File(tmp_path / "long", "full").metadata["author.notes"] == "n" * 20_000


def test_a_file_without_slack_gets_some_when_its_front_matter_changes(fixtures, tmp_path):
    hello = fixtures / "container" / "hello.aibit"
    rewrite.edit(hello, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == hello.read_bytes()
    rewrite.edit(hello, tmp_path / "more", metadata={"author.name": "n" * 100})
    assert slack_of(tmp_path / "more") == 64 + 832 + 64 + ROOM


@pytest.mark.parametrize("more", [-64, 0, 64, 128, 4096])
def test_the_front_matter_is_as_long_as_asked_for_if_that_is_enough(more):
    without = plan(TENSORS, {}, {"d": 1}).front_matter_length
    found = plan(TENSORS, {}, {"d": 1}, 64, without + more)
    assert found.front_matter_length == (
        without + more if more >= 0 else plan(TENSORS, {}, {"d": 1}, 64, 0).front_matter_length
    )
    section = found.section(layout.SLACK)
    assert (section is None) == (more == 0) and not any(section.data if section else b"")


def test_slack_is_bounded_by_its_own_limit_and_that_of_the_front_matter(monkeypatch):
    base = plan(TENSORS, {}, {}).front_matter_length
    most = plan(TENSORS, {}, {}, 64, base + layout.MAX_SLACK)
    assert len(most.section(layout.SLACK).data) == layout.MAX_SLACK
    beyond = plan(TENSORS, {}, {}, 64, base + layout.MAX_SLACK + 64)
    assert len(beyond.section(layout.SLACK).data) == 64 + 832 + 64 + ROOM
    monkeypatch.setattr(layout, "MAX_FRONT_MATTER", base + 128)
    tight = placed(most, 0)
    assert len(tight.section(layout.SLACK).data) == 128 and tight.front_matter_length == base + 128


def test_a_reader_of_1_0_reads_what_has_slack_strong_leaves_and_signatures(keys, tmp_path):
    values = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    planes = {TENSORS[0]: make("int8").encode(values, "f32"), TENSORS[1]: {"values": values[0]}}
    from aibit_format.file import sharded_writer

    with sharded_writer.writer(tmp_path / "m", list(planes), {"a.b": 1}, {"config.json": 2}, None) as out:
        out.write_document("config.json", b"{}")
        for tensor, found in planes.items():
            out.write(tensor.name, found)
        sharded_writer.commit(out, {"a.b": 1})
    signing.sign(tmp_path / "m", keys / "a.pem", tmp_path / "s")
    for name, kinds in (("m", [layout.SLACK]), ("s", [layout.STRONG_LEAVES, layout.FRONT_SIGNATURES, layout.SLACK])):
        old = FileOf10(str(tmp_path / name))
        verify_as_10(old)
        assert [s["kind"] for s in old.sections][7:] == kinds and [t["name"] for t in old.tensors] == ["a", "b"]
        assert np.allclose(old.values(old.tensors[1]), values[0])
