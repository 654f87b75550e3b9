"""The functions of ``aibit_format`` itself: each verb of the command line is one of them, and writes the same bytes."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError, WriteError
from tests.support.command import run

VERBS = ["calibrate", "convert", "diff", "edit", "export", "merge", "sign", "split"]
KEY = "keys/test-only.pem"


@pytest.fixture
def model(fixtures):
    """A small model with a document and two tensors."""
    return fixtures / "container" / "hello.aibit"


@pytest.fixture
def shards(fixtures):
    """The first shard of a model of five tensors, one of which is an alias."""
    return fixtures / "container" / "sharded-00001-of-00003.aibit"


class Calls:
    """A function for ``on_progress`` that remembers its calls, and checks them."""

    def __init__(self):
        self.calls = []

    def __call__(self, done, total, name):
        self.calls.append((done, total, name))

    def complete(self, names):
        done = [call[0] for call in self.calls]
        assert done == sorted(done) and done[-1] == self.calls[-1][1] and len({call[1] for call in self.calls}) == 1
        return [call[2] for call in self.calls] == list(names)


def stored(path):
    with aibit.open(path) as file:
        return [name for name in file if file.info(name).alias_of is None]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_makes_something_is_a_public_function(verb):
    assert verb in aibit.__all__ and verb in dir(aibit)
    function = getattr(aibit, verb)
    assert inspect.isfunction(function) and function.__doc__
    assert all(parameter.annotation is not inspect.Parameter.empty
               for parameter in inspect.signature(function).parameters.values())  # fmt: skip
    if verb != "diff":
        options = inspect.signature(function).parameters
        assert {"overwrite", "on_progress"} <= options.keys()
        assert options["overwrite"].kind is options["on_progress"].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_needs_no_torch_brings_none(shards, model, tmp_path):
    code = f"""
import sys, aibit_format as aibit
aibit.split({str(shards)!r}, {str(tmp_path / "s.aibit")!r}, "1kB")
aibit.merge({str(shards)!r}, {str(tmp_path / "m.aibit")!r})
aibit.edit({str(model)!r}, {str(tmp_path / "e.aibit")!r}, metadata={{"author.name": "we"}})
aibit.diff({str(model)!r}, {str(tmp_path / "e.aibit")!r})
assert not {{"torch", "transformers", "tqdm", "cryptography"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_edit(model, tmp_path, capsys):
    seen = Calls()
    license_text = tmp_path / "license"
    license_text.write_bytes(b"free\n")
    out, same = tmp_path / "out.aibit", tmp_path / "same.aibit"
    found = aibit.edit(
        model, out, metadata={"author.name": "we"}, documents={"LICENSE": b"free\n"}, on_progress=seen
    )  # fmt: skip
    assert found == [str(out)] and seen.complete(stored(model))
    with aibit.open(out, verify="full") as file:
        assert file.metadata["author.name"] == "we" and bytes(file.documents["LICENSE"]) == b"free\n"
    arguments = ["edit", model, "-o", same, "--set", "author.name=we", "--document", f"LICENSE={license_text}"]
    assert run(*arguments, capsys=capsys)[0] == 0
    assert same.read_bytes() == out.read_bytes()
    with pytest.raises(WriteError, match="exists"):
        aibit.edit(model, out, metadata={"author.name": "we"})
    assert aibit.edit(out, same, unset=["author.name"], remove=["LICENSE"], overwrite=True) == [str(same)]


def test_diff_takes_paths_and_open_files(model, tmp_path, capsys):
    out = tmp_path / "out.aibit"
    aibit.edit(model, out, metadata={"author.name": "we"})
    expected = [aibit.Difference("metadata", "author.name", None, "we")]
    with aibit.open(model) as a, aibit.open(out) as b:
        for x, y in ((model, out), (str(model), b), (a, out), (a, b)):
            assert aibit.diff(x, y) == expected
        assert a.planes(next(iter(a)))  # what was open stays open
    assert aibit.diff(model, model) == []
    status, printed, _ = run("diff", model, out, "--json", capsys=capsys)
    found = json.loads(printed)["differences"]
    assert status == 1 and found == [{"kind": "metadata", "name": "author.name", "a": None, "b": "we"}]


def test_split_and_merge(shards, tmp_path, capsys):
    one, seen = tmp_path / "one.aibit", Calls()
    assert aibit.merge(shards, one, on_progress=seen) == [str(one)] and seen.complete(stored(shards))
    assert aibit.diff(shards, one) == []
    seen = Calls()
    found = aibit.split(one, tmp_path / "s.aibit", "32B", on_progress=seen)
    assert len(found) > 1 and seen.complete(stored(one)) and aibit.diff(found[0], one) == []
    with pytest.raises(WriteError, match="exists"):
        aibit.split(one, tmp_path / "s.aibit", 32)
    assert aibit.split(one, tmp_path / "s.aibit", 32, overwrite=True) == found
    # The same on the command line.
    os.mkdir(tmp_path / "cli")
    assert run("merge", shards, "-o", tmp_path / "cli" / "one.aibit", capsys=capsys)[0] == 0
    again = ["split", one, "-o", tmp_path / "cli" / "s.aibit", "--max-shard-size", "32"]
    assert run(*again, capsys=capsys)[0] == 0
    for path in (one, *map(type(one), found)):
        assert (tmp_path / "cli" / path.name).read_bytes() == path.read_bytes()


def test_sign_and_keys(model, fixtures, tmp_path, capsys):
    pytest.importorskip("cryptography")
    key, seen = fixtures / KEY, Calls()
    out, same = tmp_path / "signed.aibit", tmp_path / "same.aibit"
    (signature,) = aibit.sign(model, key, out, on_progress=seen)
    assert isinstance(signature, aibit.Signature) and signature.key_id.startswith("ed25519:")
    assert seen.complete(stored(model))
    with aibit.open(out, signed_by=key.with_suffix(".pub")) as file:
        assert file.verified().signed_by == signature.key_id
    assert run("sign", model, "--key", key, "-o", same, capsys=capsys)[0] == 0
    assert same.read_bytes() == out.read_bytes()  # Ed25519 signs the same bytes in the same way
    with pytest.raises(WriteError, match="exists"):
        aibit.sign(model, key, out)
    aibit.sign(model, [key], out, overwrite=True)
    # Beside the file, by a key that is made here.
    made = aibit.new_key(tmp_path / "mine")
    assert [found.key_id for found in aibit.sign_detached(out, tmp_path / "mine.pem")] == [made]
    assert (tmp_path / "signed.aibit.sig").exists()
    with aibit.open(out, signed_by=tmp_path / "mine.pub") as file:
        assert file.verified().signed_by == made


def test_export_takes_a_path_or_an_open_file(shards, tmp_path, capsys):
    seen = Calls()
    paths = aibit.export(shards, "safetensors", tmp_path / "a", max_shard_size="5GB", on_progress=seen)
    assert seen.complete(stored(shards)) and all(map(os.path.exists, paths))
    with aibit.open(shards) as file:
        aibit.export(file, "safetensors", tmp_path / "b")
        assert file.planes(next(iter(file)))  # it stays open
    assert run("export", shards, "--to", "safetensors", "-o", tmp_path / "c", capsys=capsys)[0] == 0
    names = sorted(os.listdir(tmp_path / "a"))
    assert sorted(map(os.path.basename, paths)) == names
    for folder in ("b", "c"):
        assert sorted(os.listdir(tmp_path / folder)) == names
        for name in names:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    with pytest.raises(WriteError, match="not empty"):
        aibit.export(shards, "safetensors", tmp_path / "a")
    aibit.export(shards, "safetensors", tmp_path / "a", overwrite=True)


def test_export_says_what_it_cannot_do(shards, tmp_path):
    with pytest.raises(WriteError, match="unknown format 'keras'; known: huggingface, safetensors, gguf, onnx"):
        aibit.export(shards, "keras", tmp_path / "out")
    second = shards.with_name(shards.name.replace("00001", "00002"))
    with pytest.raises(LoadError, match="opened by the first"):
        aibit.export(second, "safetensors", tmp_path / "out")
    with pytest.raises(TypeError, match="type"):
        aibit.export(shards, "safetensors", tmp_path / "out", type="f16")
    assert not (tmp_path / "out").exists()
