"""Models in several files: cut, made one again, opened as one, and refused when they are not one set."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.errors import FormatError, LoadError, SigningError
from aibit_format.file import rewrite, sharded_reader, signing, writer
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor
from aibit_format.formats import exports
from aibit_format.formats.sources import open_source
from aibit_format.schemes import make
from aibit_format.torch.load import tensor_parallel
from tests.support import architectures, random_models
from tests.support.command import run
from tests.support.sharded_models import model as model
from tests.support.sharded_models import paths as paths
from tools.fixtures import file_builder


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
        pathlib.Path(path).write_bytes(random_models.write(*content, front_matter_length=0))
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
        with File(path, "full") as made, File(first.parent / os.path.basename(path)) as given:  # but for slack
            assert made.keys() == given.keys() and made.metadata.keys() == given.metadata.keys()
            assert np.array_equal(made.tables.leaves, given.tables.leaves)
            assert np.array_equal(made.metadata.get("shard.places", 0), given.metadata.get("shard.places", 0))


# --- all of them or none


def test_shards_without_the_first_say_so(paths, tmp_path):
    paths[0].unlink()
    with pytest.raises(LoadError, match=r"the first, s-00001-of-00004\.aibit; that is not there: .* write all of them"):
        rewrite.merge(paths[1], tmp_path / "x.aibit")


# What section 25 of the specification answers


def code_of(path, **options):
    try:
        sharded_reader.open(path, **options).close()
    except FormatError as error:
        return error.code
    return None


def test_a_set_of_one_is_a_set(fixtures, tmp_path):
    (path,) = rewrite.split(fixtures / "container" / "hello.aibit", tmp_path / "m.aibit", "1GB")
    with sharded_reader.open(path) as file, File(path) as alone:
        assert path.endswith("m-00001-of-00001.aibit") and len(file.parts) == 1
        assert alone.metadata["shard.places"].tolist() == [0, 1] and len(alone.metadata["shard.roots"]) == 0
    other = shutil.copy(path, tmp_path / "m.aibit")
    assert code_of(other) == "AIB-E607"
    assert code_of(pathlib.Path(path).read_bytes()) is None  # no name, and no set


def test_shards_are_looked_for_beside_the_name_and_not_where_a_link_leads(fixtures, tmp_path):
    container, names = fixtures / "container", [f"sharded-{i:05d}-of-00003.aibit" for i in (1, 2, 3)]
    linked = tmp_path / names[0]
    linked.symlink_to(container / names[0])
    assert code_of(linked) == "AIB-E607"
    for name in names[1:]:
        (tmp_path / name).symlink_to(container / name)
    assert code_of(linked) is None
    (tmp_path / "first.aibit").symlink_to(container / names[0])
    assert code_of(tmp_path / "first.aibit") == "AIB-E607"


def test_a_demanded_signature_is_demanded_of_each_shard_beside_its_own_name(fixtures, tmp_path):
    key, public = fixtures / "keys" / "test-only.pem", fixtures / "keys" / "test-only.pub"
    names = [f"sharded-{i:05d}-of-00003.aibit" for i in (1, 2, 3)]
    paths = [shutil.copy(fixtures / "container" / name, tmp_path / name) for name in names]
    signing.sign_detached(paths[0], key)
    assert code_of(paths[0], signed_by=public) == "AIB-E606"
    for path in paths[1:]:
        signing.sign_detached(path, key)
    assert code_of(paths[0], signed_by=public) is None
    assert code_of(paths[1], signed_by=public) is None  # a lone shard is checked like any file
    links = tmp_path / "links"
    links.mkdir()
    for name in names:
        (links / name).symlink_to(tmp_path / name)
    assert code_of(links / names[0]) is None
    assert code_of(links / names[0], signed_by=public) == "AIB-E606"
    os.rename(paths[1], f"{paths[1]}.previous")
    assert code_of(paths[0]) is None
    assert code_of(paths[0], signed_by=public) == "AIB-E606"
    os.rename(f"{paths[1]}.sig", f"{paths[1]}.previous.sig")
    assert code_of(paths[0], signed_by=public) is None
