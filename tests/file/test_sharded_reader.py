"""Models in several files: cut, made one again, opened as one, and refused when they are not one set."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import tempfile
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.errors import FormatError, LoadError, SigningError, WriteError
from aibit_format.file import rewrite, sharded_reader, sharded_writer, signing, writer
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer
from aibit_format.formats import exports
from aibit_format.formats.sources import open_source
from aibit_format.schemes import make
from aibit_format.torch.load import tensor_parallel
from tests.support import architectures, random_models
from tests.support.command import run
from tools.fixtures import file_builder

SIZE = 33_000  # of a shard of the model below: it makes four


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with ``m.aibit``, of a tied Llama, and its shards ``s-0000x-of-0000n.aibit``; and ``other`` ones."""
    folder = tmp_path_factory.mktemp("shards")
    for name, seed in (("m", 0), ("other", 1)):
        architectures.save("llama-tied", folder / f"hf-{name}", torch.float16, seed=seed)
        aibit.convert(folder / f"hf-{name}", folder / f"{name}.aibit")
    rewrite.split(folder / "m.aibit", folder / "s.aibit", SIZE)
    rewrite.split(folder / "other.aibit", folder / "other-s.aibit", SIZE)
    return folder


@pytest.fixture
def paths(model, tmp_path):
    """Copies of the shards, to be broken."""
    names = sorted(model.glob("s-*.aibit"))
    assert len(names) == 4
    return [pathlib.Path(shutil.copy(name, tmp_path)) for name in names]


def refused(path, verify="structure"):
    """The error that opening a set gives."""
    with pytest.raises(FormatError) as caught:
        sharded_reader.open(path, verify)
    return caught.value


# --- cutting and joining


@settings(random_models.calm, max_examples=25)
@given(random_models.models(), st.integers(1, 9000), st.integers(1, 9000))
def test_shards_made_one_are_the_file_that_they_were_cut_from(content, size, other):
    with tempfile.TemporaryDirectory() as folder:
        path, again = os.path.join(folder, "m.aibit"), os.path.join(folder, "again.aibit")
        pathlib.Path(path).write_bytes(random_models.write(*content))
        found = rewrite.split(path, path, size)
        for name in found:
            File(name, "full")
        rewrite.merge(found[0], again)
        assert pathlib.Path(again).read_bytes() == pathlib.Path(path).read_bytes()
        # Cut anew: what the shards were does not matter.
        direct, anew = os.path.join(folder, "direct"), os.path.join(folder, "anew")
        pairs = zip(rewrite.split(path, direct, other), rewrite.split(found[0], anew, other), strict=True)
        assert all(pathlib.Path(a).read_bytes() == pathlib.Path(b).read_bytes() for a, b in pairs)
        with sharded_reader.open(path) as one, sharded_reader.open(found[0], "full") as several:
            assert isinstance(several, sharded_reader.Sharded) and several.keys() == one.keys()
            assert list(several.metadata) == list(one.metadata)
            assert dict(several.documents) == dict(one.documents)
            for name in one:
                assert several.info(name).alias_of == one.info(name).alias_of
                for role, plane in one.planes(name).items():
                    assert several.planes(name)[role].tobytes() == plane.tobytes()


def test_where_a_model_is_cut():
    def tensor(name, size, alias_of=None):
        return Tensor(name, (size,), "u8", make("u8"), alias_of)

    tensors = [tensor("a", 10), tensor("b", 0), tensor("c", 20), tensor("d", 31), tensor("e", 5), tensor("f", 25)]
    tensors += [tensor("tied", 10, "a"), tensor("tied too", 31, "d")]
    assert sharded_writer.cut(tensors, 30) == [[0, 1, 2, 6], [3, 7], [4, 5]]
    assert sharded_writer.cut(tensors, 29) == [[0, 1, 6], [2], [3, 7], [4], [5]]
    assert sharded_writer.cut(tensors, 1000) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert sharded_writer.cut([], 1) == [[]]


def test_sizes():
    wanted = {"1": 1, "7B": 7, "5GB": 5 * 10**9, "500 mb": 5 * 10**8, "4GiB": 4 << 30, "2kib": 2048, "1TB": 10**12}
    assert {text: sharded_writer.parse_size(text) for text in wanted} == wanted
    assert sharded_writer.parse_size(4096) == 4096
    for text in ("", "0", "0GB", "GB", "-1", "1.5GB", "5G", "1iB", "5 G B", 10**20):
        with pytest.raises(ValueError, match="is not a size"):
            sharded_writer.parse_size(text)


def test_names():
    assert sharded_reader.shard_path("a/m.aibit", 2, 3) == "a/m-00002-of-00003.aibit"
    paths_of = sharded_reader.paths_of
    assert paths_of("a/m-00001-of-00002.aibit") == ["a/m-00001-of-00002.aibit", "a/m-00002-of-00002.aibit"]
    assert paths_of("https://x/m-00001-of-00002.aibit?download=1")[1] == "https://x/m-00002-of-00002.aibit?download=1"
    for alone in ("m.aibit", "m-00002-of-00003.aibit", "m-1-of-2.aibit"):
        assert sharded_reader.paths_of(alone) == [alone]


# --- one model


def test_a_set_is_used_as_a_file_is(model, tmp_path):
    first = model / "s-00001-of-00004.aibit"
    whole, several = aibit.open(model / "m.aibit"), aibit.open(first, "full")
    assert several.verified().tensors == len(whole) == len(several) and several.verified().shards == 4
    assert several.root == several.parts[0].root and several.size == sum(os.path.getsize(p.path) for p in several.parts)
    alias = next(name for name in whole if whole.info(name).alias_of)
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", alias):
        assert np.array_equal(several.dequantize(name), whole.dequantize(name))
    assert alias in several and "no such tensor" not in several
    a, b = (aibit.load_model(path) for path in (model / "m.aibit", first))
    assert torch.equal(architectures.output(a, "llama-tied"), architectures.output(b, "llama-tied"))
    from aibit_format.numpy import load_file

    assert load_file(first).keys() == load_file(model / "m.aibit").keys()
    for to in ("huggingface", "safetensors"):
        for file, name in ((whole, f"{to}-a"), (several, f"{to}-b")):
            exports.export(file, to, tmp_path / name)
        for path in (tmp_path / f"{to}-a").iterdir():
            if path.name != "README.md":  # which states the root
                assert path.read_bytes() == (tmp_path / f"{to}-b" / path.name).read_bytes()
    with several:
        pass


def test_converting_shards_again(model, tmp_path):
    source = open_source(model / "s-00001-of-00004.aibit")
    assert [file.name for file in source.files] == [f"s-0000{i}-of-00004.aibit" for i in range(1, 5)]
    aibit.convert(model / "s-00001-of-00004.aibit", tmp_path / "again.aibit")
    with aibit.open(tmp_path / "again.aibit") as again, aibit.open(model / "m.aibit") as whole:
        assert again.keys() == whole.keys() and list(again.metadata["source.files"]) == [f.name for f in source.files]
        for name in whole:
            for role, plane in whole.planes(name).items():
                assert np.array_equal(plane, again.planes(name)[role])


def test_rows_of_a_tensor_are_those_of_its_shard(model):
    """What a rank of several reads: each plane's offset is one in the shard that the tensor is in."""
    several = aibit.open(model / "s-00001-of-00004.aibit")
    name = "model.layers.1.mlp.down_proj.weight"
    slices = tensor_parallel.Slices.__new__(tensor_parallel.Slices)
    slices.file, slices.rows = several, {name: slice(32, 64)}
    info, planes = slices.read(several.info(name))
    assert several.part(name) is not several.parts[0]
    assert np.array_equal(info.scheme.decode(planes, info.shape, info.dtype), several.dequantize(name)[32:])


def test_one_shard_is_not_taken_for_a_model(model, tmp_path):
    third, first = model / "s-00003-of-00004.aibit", model / "s-00001-of-00004.aibit"
    assert isinstance(aibit.open(third), File) and aibit.open(third, "full").keys()
    calls = [
        lambda: aibit.load_model(third), lambda: aibit.load_tokenizer(third), lambda: aibit.load_model(File(first)),
        lambda: aibit.convert(third, tmp_path / "x.aibit"), lambda: rewrite.merge(third, tmp_path / "x.aibit"),
        lambda: rewrite.split(third, tmp_path / "x.aibit", 100),
        lambda: aibit.load_model(aibit.open(first.read_bytes())),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(LoadError, match=r"shard [13] of 4 of a model, which is opened by the first"):
            call()
    assert not (tmp_path / "x.aibit").exists()


# --- sets that are none


def test_a_missing_shard_is_named(paths):
    paths[2].unlink()
    error = refused(paths[0])
    assert error.code == "AIB-E607" and error.path == str(paths[2]) and "shard 3 of 4 cannot be opened" in str(error)
    paths[2].mkdir()
    error = refused(paths[0])
    assert error.code == "AIB-E607" and error.path == str(paths[2]) and "not a regular file" in str(error)


def test_shards_are_found_by_the_name_of_the_first(paths, tmp_path):
    for name in ("renamed.aibit", "s-00001-of-00003.aibit", "s-00002-of-00004.aibit"):
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        shutil.copy(paths[0], folder / name)
        error = refused(folder / name)
        assert error.code == "AIB-E607" and error.path == str(folder / name) and error.expected == "-00001-of-00004"


def test_swapped_shards_are_named(paths, tmp_path):
    paths[1].rename(tmp_path / "aside")
    paths[2].rename(paths[1])
    (tmp_path / "aside").rename(paths[2])
    error = refused(paths[0])
    assert error.code == "AIB-E608" and error.path == str(paths[1]) and "it is shard 3 of 4" in str(error)
    assert (error.expected, error.found) == (File(paths[2]).root, File(paths[1]).root)


def test_shards_of_two_models_are_not_mixed(model, paths):
    shutil.copy(model / "other-s-00004-of-00004.aibit", paths[3])
    error = refused(paths[0])
    assert error.code == "AIB-E608" and error.path == str(paths[3]) and "it is shard 4 of 4" in str(error)
    shutil.copy(model / "m.aibit", paths[3])
    assert "it is no shard" in str(refused(paths[0]))


def test_damage_is_named_with_its_shard(paths, capsys):
    whole = paths[1].read_bytes()
    for at, code, level in ((200, "AIB-E111", "structure"), (len(whole) - 1, "AIB-E602", "full")):
        data = bytearray(whole)
        data[at] ^= 1
        paths[1].write_bytes(data)
        error = refused(paths[0], level)
        assert error.code == code and error.path == str(paths[1])
        status, out, _ = run("verify", paths[0], capsys=capsys)
        assert status == 3 and f"{paths[1]}: " in out and code in out
    with pytest.raises(FormatError) as caught:
        rewrite.merge(paths[0], paths[0].with_name("out.aibit"))
    assert caught.value.code == "AIB-E602" and caught.value.path == str(paths[1])
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)
    paths[1].write_bytes(whole[:-64])
    assert refused(paths[0]).code == "AIB-E108"


def test_a_shard_that_changed_with_good_digests_is_refused(paths):
    data = file_builder.reseal(bytes(flipped(paths[3].read_bytes())), leaves=True)
    File(data, "structure")
    paths[3].write_bytes(data)
    error = refused(paths[0])
    assert error.code == "AIB-E608" and error.path == str(paths[3])


def flipped(data):
    """The last byte of the last plane, changed."""
    data = bytearray(data)
    data[-1] ^= 1
    return data


U8 = make("u8")


def made(folder, contents, said=({}, {}, {}), places=None, metadata=None):
    """A set of tensors of one byte by their names, with digests that are right whatever else is ``said``."""
    count, roots = len(contents), []
    name = str(folder / "set.aibit")
    for index in range(count, 0, -1):
        tensors = {Tensor(n, (1,), "u8", U8): {"values": np.zeros(1, np.uint8)} for n in contents[index - 1]}
        values = {"shard.index": index, "shard.count": count}
        if index == 1:
            values |= {"shard.roots": roots[::-1], **(metadata or {})}
            values["shard.places"] = np.arange(sum(map(len, contents))) if places is None else np.array(places, int)
        path = sharded_reader.shard_path(name, index, count)
        writer.write(path, tensors, values | said[index - 1])
        roots.append(File(path).root)
    return path


def test_sets_whose_files_contradict_one_another(tmp_path):
    contents = [["a", "b"], ["c"], ["d"]]
    cases = {
        "good": ({}, None),
        "named twice": ({"contents": [["a", "b"], ["c"], ["a"]]}, "AIB-E414"),
        "another place": ({"said": ({}, {"shard.index": 3}, {})}, "AIB-E609"),
        "another count": ({"said": ({}, {}, {"shard.count": 4})}, "AIB-E609"),
        "a place too few": ({"places": [0, 1, 2]}, "AIB-E609"),
        "a place twice": ({"places": [0, 1, 1, 2]}, "AIB-E609"),
        "a place beyond": ({"places": [0, 1, 2, 4]}, "AIB-E609"),
        "out of order": ({"places": [1, 0, 2, 3]}, "AIB-E609"),
        "other order": ({"places": [2, 3, 1, 0]}, None),
        "parameters": ({"metadata": {"model.parameters": 4}}, None),
        "wrong parameters": ({"metadata": {"model.parameters": 2}}, "AIB-E310"),
        "errors": ({"metadata": errors(3)}, None),
        "errors beyond": ({"metadata": errors(4)}, "AIB-E310"),
    }
    for name, (options, code) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        first = made(folder, **{"contents": contents} | options)
        if code is None:
            assert len(sharded_reader.open(first, "full")) == 4
        else:
            assert refused(first).code == code, name
    assert sharded_reader.open(tmp_path / "other order" / "set-00001-of-00003.aibit").keys() == ["d", "c", "a", "b"]
    assert refused(tmp_path / "named twice" / "set-00001-of-00003.aibit").path.endswith("set-00003-of-00003.aibit")


def errors(place):
    table = {f"quantization.error.{key}": [0.0] for key in ("relative_rms", "largest", "signal_to_noise_db")}
    return {"quantization.error.tensor": [place], **table}


@pytest.mark.parametrize("values", [
    {"shard.index": 1}, {"shard.count": 1}, {"shard.roots": []}, {"shard.other": 1},
    {"shard.index": 0, "shard.count": 2}, {"shard.index": 3, "shard.count": 2}, {"shard.index": -1, "shard.count": -1},
    {"shard.index": 2, "shard.count": 100_000},
    {"shard.index": 1, "shard.count": 1}, {"shard.index": 1, "shard.count": 1, "shard.roots": []},
    {"shard.index": 1, "shard.count": 2, "shard.roots": [], "shard.places": []},
    {"shard.index": 1, "shard.count": 2, "shard.roots": ["0" * 31], "shard.places": []},
    {"shard.index": 1, "shard.count": 2, "shard.roots": ["A" * 32], "shard.places": []},
    {"shard.index": 1, "shard.count": 1, "shard.roots": ["0" * 32], "shard.places": []},
    {"shard.index": 2, "shard.count": 2, "shard.roots": []}, {"shard.index": 2, "shard.count": 2, "shard.places": [0]},
    {"shard.index": 2, "shard.count": 2, "tool.name": "aibit"},
])  # fmt: skip
def test_what_a_file_says_of_its_set_is_checked_when_it_is_opened(values):
    with pytest.raises(FormatError) as caught:
        writer.plan([], values, {})
    assert caught.value.code == "AIB-E609"


def test_documents_are_in_the_first_shard_only():
    later = {"shard.index": 2, "shard.count": 2}
    writer.plan([], later, {})
    with pytest.raises(FormatError, match=r"documents of shard 2 of 2.*E609"):
        writer.plan([], later, {"config.json": 3})


def test_each_shard_of_a_signed_model_is_signed(paths, fixtures, tmp_path, capsys):
    keys = fixtures / "keys"
    private, public = keys / "test-only.pem", keys / "test-only.pub"
    with pytest.raises(SigningError, match="would change the root by which the first shard lists it"):
        signing.sign(paths[1], private, tmp_path / "x.aibit")
    for path in paths[:-1]:
        signing.sign_detached(path, private)
    with pytest.raises(FormatError) as caught:
        sharded_reader.open(paths[0], signed_by=public)
    assert caught.value.code == "AIB-E606" and caught.value.path == str(paths[-1])
    signing.sign_detached(paths[-1], private)
    assert sharded_reader.open(paths[0], signed_by=public).verified().signed_by == signing.sign_detached(
        paths[0], private, overwrite=True)[0].key_id  # fmt: skip
    assert run("verify", "--key", public, paths[0], capsys=capsys)[0] == 0
    assert aibit.load_model(paths[0], signed_by=public) is not None


def test_the_fixture_is_what_splitting_makes(fixtures, tmp_path):
    first = fixtures / "container" / "sharded-00001-of-00003.aibit"
    with sharded_reader.open(first, "full") as file:
        assert file.keys() == ["embed.weight", "layer.weight", "layer.bias", "norm.weight", "lm_head.weight"]
    rewrite.merge(first, tmp_path / "sharded.aibit")
    for path in rewrite.split(tmp_path / "sharded.aibit", tmp_path / "sharded.aibit", 32):
        name = os.path.basename(path)
        assert pathlib.Path(path).read_bytes() == (first.parent / name).read_bytes()


# --- all of them or none


def test_outputs_that_exist_are_kept(model, tmp_path):
    taken = tmp_path / "s-00003-of-00004.aibit"
    taken.write_text("mine")
    with pytest.raises(WriteError, match=r"00003-of-00004\.aibit: exists"):
        rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE)
    assert list(tmp_path.iterdir()) == [taken] and taken.read_text() == "mine"
    found = rewrite.split(model / "m.aibit", tmp_path / "s.aibit", "33kB", overwrite=True)
    assert sorted(map(str, tmp_path.iterdir())) == found
    assert [pathlib.Path(p).read_bytes() for p in found] == [p.read_bytes() for p in sorted(model.glob("s-*.aibit"))]


def test_inputs_are_never_written_over(paths, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    before = [path.read_bytes() for path in paths]
    for call in (
        lambda: rewrite.merge(paths[0], paths[2], overwrite=True),
        lambda: rewrite.split(paths[0], tmp_path / "link" / "s.aibit", SIZE, overwrite=True),
    ):
        with pytest.raises(WriteError, match="is what is being read"):
            call()
    assert [path.read_bytes() for path in paths] == before


def test_the_first_shard_appears_last_and_none_stays_after_a_failure(model, tmp_path, monkeypatch):
    published, publish = [], Writer.publish

    def record(self):
        assert not any(name.startswith("s-") for name in os.listdir(tmp_path)) or published
        publish(self)
        published.append(os.path.basename(self.path))

    monkeypatch.setattr(Writer, "publish", record)
    rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE)
    assert len(published) == 4 and published[-1] == "s-00001-of-00004.aibit"
    for path in tmp_path.iterdir():
        path.unlink()

    for fails in range(4):
        done = []

        def fail(self, fails=fails, done=done):
            if len(done) == fails:
                raise WriteError("the disk is gone")
            publish(self)
            done.append(self.path)

        monkeypatch.setattr(Writer, "publish", fail)
        with pytest.raises(WriteError, match="the disk is gone"):
            rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE)
        assert list(tmp_path.iterdir()) == []


def test_what_is_replaced_stays_until_all_of_it_is(model, tmp_path, monkeypatch):
    rewrite.split(model / "other.aibit", tmp_path / "s.aibit", SIZE)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    publish, done, fails = Writer.publish, [], 2

    def fail(self):
        if len(done) == fails:
            kept = {path.name.removesuffix(".previous"): path.read_bytes() for path in sorted(tmp_path.iterdir())}
            assert kept == old  # ".previous" sorts after the name itself, and takes its place here
            raise WriteError("the disk is gone")
        publish(self)
        done.append(self.path)

    monkeypatch.setattr(Writer, "publish", fail)
    with pytest.raises(WriteError, match="the disk is gone"):
        rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    # Of a process that was killed there, and could put nothing back, the old shards are what the next one keeps.
    killed = tmp_path / "s-00002-of-00004.aibit"
    shutil.copy(killed, f"{killed}.previous")
    killed.write_bytes(b"of the new model")
    done.clear()
    with pytest.raises(WriteError, match="the disk is gone"):
        rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    monkeypatch.setattr(Writer, "publish", publish)
    rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(old)
    first = "s-00001-of-00004.aibit"
    assert sharded_reader.open(tmp_path / first, "full").root == File(model / first).root


STEPS = ("replace", "link", "unlink", "fsync")


@pytest.mark.parametrize("error", [OSError(5, "the disk is gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("replacing", [True, False])
def test_a_failure_at_any_step_leaves_one_model_or_none(replacing, error, model, tmp_path, monkeypatch):
    """And while it is being replaced, the model opens at every step."""
    calls, fails, seen = {name: getattr(os, name) for name in STEPS}, [0], []
    first = tmp_path / "s-00001-of-00004.aibit"
    source, older = model / "m.aibit", model / "other.aibit"

    def call(name, *arguments, **options):
        fails[0] -= 1
        if not fails[0]:
            if replacing:
                with sharded_reader.open(first) as file:
                    seen.append(file.root)
            raise error
        return calls[name](*arguments, **options)

    for last in range(1, 1000):
        for path in tmp_path.iterdir():
            path.unlink()
        wanted = [[]]
        if replacing:
            rewrite.split(older, tmp_path / "s.aibit", SIZE)
            wanted = [[path.read_bytes() for path in sorted(model.glob("other-s-*"))]]
        wanted.append([path.read_bytes() for path in sorted(model.glob("s-*"))])
        fails[0] = last
        with monkeypatch.context() as patch, contextlib.suppress(WriteError, KeyboardInterrupt):
            for name in STEPS:
                patch.setattr(os, name, functools.partial(call, name))
            rewrite.split(source, tmp_path / "s.aibit", SIZE, overwrite=replacing)
        there = sorted(path for path in tmp_path.iterdir() if not path.name.startswith("."))
        if fails[0] > 0:
            break
        left = [path for path in there if path.suffix == ".previous"]
        assert len(left) <= isinstance(error, OSError)  # one that could not be removed, with nothing else amiss
        assert [path.read_bytes() for path in there if path not in left] in wanted
    assert last > 4 * 3 and [path.read_bytes() for path in there] == wanted[1]
    if replacing:
        old, new = (File(model / f"{name}-00001-of-00004.aibit").root for name in ("other-s", "s"))
        assert seen == [old] * seen.count(old) + [new] * seen.count(new) and seen.count(new) > 3


def test_a_model_opens_while_others_replace_it(model, tmp_path):
    first, roots, done = tmp_path / "s-00001-of-00004.aibit", set(), threading.Event()
    rewrite.split(model / "m.aibit", tmp_path / "s.aibit", SIZE)

    def replace():
        for i in range(20):
            rewrite.split(model / ("other.aibit", "m.aibit")[i % 2], tmp_path / "s.aibit", SIZE, overwrite=True)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        with sharded_reader.open(first) as file:
            roots.add(file.root)
    writer.join()
    assert len(roots) == 2


def test_shards_without_the_first_say_so(paths, tmp_path):
    paths[0].unlink()
    with pytest.raises(LoadError, match=r"the first, s-00001-of-00004\.aibit; that is not there: .* write all of them"):
        rewrite.merge(paths[1], tmp_path / "x.aibit")


# --- on the command line


def test_split_and_merge(model, tmp_path, capsys):
    status, out, err = run("split", model / "m.aibit", "-o", tmp_path / "s.aibit", "--max-shard-size", "33kB", "--json",
                           capsys=capsys)  # fmt: skip
    assert status == 0 and not err
    found = [entry["path"] for entry in json.loads(out)["files"]]
    assert len(found) == 4 and all(entry["bytes"] for entry in json.loads(out)["files"])
    status, out, _ = run("inspect", found[0], capsys=capsys)
    assert status == 0 and "s-00004-of-00004.aibit" in out and "shard." not in out
    status, out, _ = run("inspect", found[1], capsys=capsys)
    assert status == 0 and "shard 2 of 4 of a model" in out
    status, out, _ = run("inspect", found[0], "--json", capsys=capsys)
    rows = json.loads(out)["tensors"]
    assert {row["shard"] for row in rows} == {1, 2, 3, 4} and rows[-1]["alias_of"] and rows[-1]["shard"] == 1
    status, out, _ = run("verify", found[0], capsys=capsys)
    assert status == 0 and "valid" in out and "4 shards" in out
    status, out, _ = run("merge", found[0], "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 0 and out.startswith(str(tmp_path / "m.aibit"))
    assert (tmp_path / "m.aibit").read_bytes() == (model / "m.aibit").read_bytes()
    status, _, err = run("merge", found[0], "-o", tmp_path / "m.aibit", capsys=capsys)
    assert status == 1 and "exists" in err
    assert run("merge", found[0], "-o", tmp_path / "m.aibit", "--force", capsys=capsys)[0] == 0
    status, _, err = run("merge", tmp_path / "m.aibit", "-o", tmp_path / "n.aibit", capsys=capsys)
    assert status == 1 and "is one file already" in err
    assert run("extract", found[0], "-o", tmp_path / "out", "--tensor", "model.norm.weight", capsys=capsys)[0] == 0
    status, _, err = run("run", found[1], "x", capsys=capsys)
    assert status == 1 and "s-00001-of-00004.aibit" in err
    os.unlink(found[2])
    status, _, err = run("merge", found[0], "-o", tmp_path / "n.aibit", capsys=capsys)
    assert status == 3 and found[2] in err and "AIB-E607" in err and not (tmp_path / "n.aibit").exists()


@pytest.mark.parametrize("arguments", [
    ("split", "m.aibit"), ("split", "m.aibit", "-o", "s.aibit"), ("merge", "m.aibit"),
    ("split", "m.aibit", "-o", "s.aibit", "--max-shard-size", "5 apples"),
    ("split", "m.aibit", "-o", "s.aibit", "--max-shard-size", "0"),
])  # fmt: skip
def test_wrong_arguments(arguments, model, capsys, monkeypatch):
    monkeypatch.chdir(model)
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 2 and "usage:" in err and not out
