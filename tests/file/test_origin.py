"""Planes taken from an open model: the same bytes in every way, read or unread, and in how much room."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import FormatError, WriteError
from aibit_format.file import rewrite, sharded_reader
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan, write
from aibit_format.io import extents
from aibit_format.schemes import make
from tests.support.extents import REAL, SYSTEMS, small_disk
from tests.support.range_server import serving
from tests.support.signed_files import keys as keys
from tools.bench.rewriting import make_model, shared_bytes

INT8, F32 = make("int8"), make("f32")


def content(seed=0):
    """Planes of no bytes, in the pool, of no whole blocks, of whole blocks, and of some leaves; and an alias."""
    random = np.random.default_rng(seed)
    shapes = {"none": (0, 8), "norm": (700,), "odd": (333, 77), "blocks": (64, 512), "leaves": (1300, 2049)}
    found = {}
    for name, shape in shapes.items():
        array = random.standard_normal(shape).astype("<f4")
        scheme = INT8 if name in ("odd", "leaves") else F32
        planes = scheme.encode(array, "f32") if scheme is INT8 else {"values": array}
        found[Tensor(name, shape, "f32", scheme)] = planes
    found[Tensor("head", shapes["odd"], "f32", INT8, "odd")] = {}
    return found


@pytest.fixture(scope="module", params=[64, 4096], ids="aligned to {}".format)
def models(request, tmp_path_factory):
    """A folder with ``m.aibit`` and its shards ``s-...``."""
    folder = tmp_path_factory.mktemp("models")
    documents = {"a.txt": b"text", "b.txt": b""}
    write(folder / "m.aibit", content(), {"author.name": "nobody"}, documents, alignment=request.param)
    rewrite.split(folder / "m.aibit", folder / "s.aibit", 120_000)
    return folder


def shards(folder):
    return sorted(folder.glob("s-*.aibit"))


VERBS = {
    "edit": lambda folder, out, key: rewrite.edit(folder / "m.aibit", out, metadata={"author.name": "x" * 5000}),
    "edit shards": lambda folder, out, key: rewrite.edit(shards(folder)[0], out, documents={"c.txt": b"more" * 2000}),
    "split": lambda folder, out, key: rewrite.split(folder / "m.aibit", out, 150_000),
    "split anew": lambda folder, out, key: rewrite.split(shards(folder)[0], out, 1 << 20),
    "merge": lambda folder, out, key: rewrite.merge(shards(folder)[0], out),
    "sign": lambda folder, out, key: aibit.sign(folder / "m.aibit", key, out),
}


@pytest.mark.parametrize("verb", VERBS)
def test_bytes_do_not_depend_on_how_they_were_put(models, keys, tmp_path, monkeypatch, verb):
    outputs = {}
    for system, ways in SYSTEMS.items():
        monkeypatch.setattr(extents, "WAYS", ways)
        folder = tmp_path / system
        folder.mkdir()
        VERBS[verb](models, folder / "out.aibit", keys / "a.pem")
        outputs[system] = {path.name: path.read_bytes() for path in folder.iterdir()}
        with sharded_reader.open(folder / min(outputs[system])) as file:
            file.verify()
    assert len(outputs["this process"]) == len(shards(models)) if verb == "edit shards" else outputs["this process"]
    assert all(found == outputs["this process"] for found in outputs.values())


def test_blocks_are_shared_wherever_they_can_be(models, tmp_path, monkeypatch):
    shared = []

    def clone(*arguments):
        shared.append(SYSTEMS["blocks"]["clone"](*arguments))
        return shared[-1]

    monkeypatch.setattr(extents, "WAYS", SYSTEMS["blocks"] | {"clone": clone})
    with File(models / "m.aibit") as file:
        size, alignment = file.data.end - file.data.start, file.tables.alignment
    for verb in ("edit", "merge"):
        VERBS[verb](models, tmp_path / verb, None)
        assert alignment == 64 or sum(shared) > size - 7 * 4096  # the pool is small, and planes end within blocks
        shared.clear()


def test_an_edit_reads_no_plane(models, tmp_path, monkeypatch):
    real = File.check_leaves

    def checked(self, offset, length, storage=None):
        if length and offset >= self.data.start:
            pytest.fail(f"{length} bytes of data are read at {offset}")
        real(self, offset, length, storage)

    with monkeypatch.context() as patch:
        patch.setattr(File, "check_leaves", checked)
        patch.setattr(File, "view", lambda self, plane: pytest.fail(f"{plane} is read"))
        rewrite.edit(models / "m.aibit", tmp_path / "out.aibit", metadata={"author.name": "we"})
        rewrite.edit(shards(models)[0], tmp_path / "s.aibit", metadata={"author.name": "we"})
    before, after = File(models / "m.aibit").tables, File(tmp_path / "out.aibit", "full").tables
    data = before.placement.regions[1]
    assert np.array_equal(before.leaves[data.first :], after.leaves[after.placement.regions[1].first :])


# What is wrong with the source


def damaged(models, folder, name="leaves"):
    """A copy of the model with a byte of the tensor changed."""
    path = folder / "damaged.aibit"
    shutil.copy(models / "m.aibit", path)
    plane = File(path).info(name).planes[0]
    with open(path, "r+b") as file:
        file.seek(plane.offset + plane.length - 1)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return path


@pytest.mark.parametrize("system", SYSTEMS)
def test_damage_is_found_in_an_edited_copy_as_in_the_source(models, tmp_path, monkeypatch, system):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS[system])
    path = damaged(models, tmp_path)
    rewrite.edit(path, tmp_path / "out.aibit", metadata={"author.name": "we"})
    problems = []
    for name in (path, tmp_path / "out.aibit"):
        with pytest.raises(FormatError) as caught:
            File(name).verify()
        problems.append([(p.code, p.tensor, p.expected, p.found) for p in caught.value.problems])
    assert problems[0] == problems[1] and problems[0][0][0] == "AIB-E602"
    with File(tmp_path / "out.aibit", "touched") as file, pytest.raises(FormatError):
        file.planes("leaves")


@pytest.mark.parametrize("system", SYSTEMS)
def test_damage_stops_a_split_and_a_merge(models, tmp_path, monkeypatch, system):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS[system])
    path = damaged(models, tmp_path)
    (tmp_path / "shards").mkdir()
    (one,) = rewrite.edit(path, tmp_path / "shards" / "e.aibit", metadata={"author.name": "we"})
    with pytest.raises(FormatError) as caught:
        rewrite.split(one, tmp_path / "shards" / "s.aibit", 1 << 20)
    assert caught.value.code == "AIB-E602"
    assert os.listdir(tmp_path / "shards") == ["e.aibit"]


@pytest.mark.parametrize("verb", ["edit", "split"])
def test_padding_is_zero_whatever_the_source_has_there(models, tmp_path, monkeypatch, verb):
    """It belongs to no plane, so nothing of it is taken."""
    shutil.copy(models / "m.aibit", tmp_path)
    plane = File(models / "m.aibit").info("norm").planes[0]
    with open(tmp_path / "m.aibit", "r+b") as file:
        file.seek(plane.offset + plane.length)
        assert file.read(1) == b"\0"
        file.seek(-1, os.SEEK_CUR)
        file.write(b"x")
    for system, ways in SYSTEMS.items():
        monkeypatch.setattr(extents, "WAYS", ways)
        if verb == "split":
            with pytest.raises(FormatError, match="AIB-E602"):
                VERBS[verb](tmp_path, tmp_path / "out.aibit", None)
        else:
            VERBS[verb](tmp_path, tmp_path / system, None)
            VERBS[verb](models, tmp_path / "expected", None)
            assert (tmp_path / system).read_bytes() == (tmp_path / "expected").read_bytes()
            (tmp_path / "expected").unlink()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("call", ["take", "take_data"])
def test_a_source_that_changes_meanwhile_is_an_error(models, tmp_path, monkeypatch, system, call):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS[system])
    path = tmp_path / "m.aibit"
    shutil.copy(models / "m.aibit", path)
    with File(path) as file, Writer(tmp_path / "out.aibit", file_plan(), source=file) as out:
        out._wait_for_room()
        os.utime(path, ns=(0, 1))
        with pytest.raises(FormatError, match="AIB-E802"):
            out.take_data() if call == "take_data" else out.take("leaves")
    assert not (tmp_path / "out.aibit").exists()


# The writer


def file_plan(alignment=4096):
    return plan(content(), {"author.name": "me"}, {}, alignment)


def test_tensors_of_another_file_are_checked_and_get_digests_of_their_own(models, tmp_path):
    tensors = [tensor for tensor in content() if tensor.name in ("blocks", "leaves")]
    expected = {tensor: content()[next(t for t in content() if t.name == tensor.name)] for tensor in tensors}
    write(tmp_path / "expected.aibit", expected)
    told = []
    with (
        File(models / "m.aibit") as file,
        Writer(tmp_path / "out.aibit", plan(tensors, {}, {}), source=file) as out,
    ):
        out.take_data(told.append)
        out.commit()
    assert told == ["blocks", "leaves"]
    assert (tmp_path / "out.aibit").read_bytes() == (tmp_path / "expected.aibit").read_bytes()


def test_one_tensor_may_be_another_than_the_source_has(models, tmp_path, monkeypatch):
    """It is written over what is shared, and all digests are those of the file."""
    monkeypatch.setattr(extents, "WAYS", SYSTEMS["blocks"])
    mixed = {tensor: dict(planes) for tensor, planes in content().items()}
    changed = next(tensor for tensor in mixed if tensor.name == "leaves")
    mixed[changed] = next(planes for tensor, planes in content(1).items() if tensor.name == "leaves")
    write(tmp_path / "expected.aibit", mixed, {"author.name": "me"})
    with File(models / "m.aibit") as file, Writer(tmp_path / "out.aibit", file_plan(), source=file) as out:
        out.write("leaves", mixed[changed])
        out.take_data()
        out.commit()
    assert (tmp_path / "out.aibit").read_bytes() == (tmp_path / "expected.aibit").read_bytes()


def test_what_cannot_be_taken_is_refused(models, tmp_path):
    with File(models / "m.aibit") as file:
        with Writer(tmp_path / "out.aibit", file_plan()) as out, pytest.raises(WriteError, match="no source"):
            out.take("leaves")
        other = [
            Tensor("leaves", (2049, 1300), "f32", INT8), Tensor("odd", (333, 77), "f32", F32),
            Tensor("unknown", (1,), "f32", F32),
        ]  # fmt: skip
        with Writer(tmp_path / "out.aibit", plan(other, {}, {}), source=file) as out:
            for name in ("leaves", "odd"):
                with pytest.raises(WriteError, match=repr(name)):
                    out.take(name)
            with pytest.raises(KeyError):
                out.take("unknown")
        alignment = file.tables.alignment
        with Writer(tmp_path / "out.aibit", file_plan(alignment), source=file) as out:
            out.take_data()
            planes = next(planes for tensor, planes in content().items() if tensor.name == "leaves")
            with pytest.raises(WriteError, match="with their digests"):
                out.write("leaves", planes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("way", REAL)
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("verb", ["edit", "split", "merge"])
def test_a_disk_that_fails_is_a_write_error_and_leaves_nothing(models, tmp_path, monkeypatch, way, code, verb):
    def fail(*arguments):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    if way == "clone" and File(models / "m.aibit").tables.alignment == 64:
        pytest.skip("there are no blocks that could be shared")
    monkeypatch.setattr(extents, "WAYS", dict.fromkeys(REAL, lambda *arguments: 0) | {way: fail})
    with pytest.raises(WriteError, match=f"out.*{os.strerror(getattr(errno, code))}"):
        VERBS[verb](models, tmp_path / "out.aibit", None)
    assert os.listdir(tmp_path) == []


def test_what_comes_from_a_url_is_checked(models, tmp_path):
    damaged(models, tmp_path)
    shutil.copy(models / "m.aibit", tmp_path)
    with serving(tmp_path) as (url, _):
        rewrite.edit(f"{url}/m.aibit", tmp_path / "out.aibit", metadata={"author.name": "we"})
        with pytest.raises(FormatError, match="AIB-E602"):
            rewrite.edit(f"{url}/damaged.aibit", tmp_path / "other.aibit", metadata={"author.name": "we"})
    rewrite.edit(tmp_path / "m.aibit", tmp_path / "same.aibit", metadata={"author.name": "we"})
    assert (tmp_path / "out.aibit").read_bytes() == (tmp_path / "same.aibit").read_bytes()
    assert not (tmp_path / "other.aibit").exists()


# Room


def test_what_is_shared_takes_no_room(tmp_path, monkeypatch):
    """With less free than the model takes, it is edited where extents are shared, and refused at once elsewhere."""
    with small_disk(tmp_path, 300 << 20) as folder:
        make_model(folder / "m.aibit", 128 << 20)
        os.sync()
        size = (folder / "m.aibit").stat().st_size
        assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize < size
        paths = rewrite.edit(folder / "m.aibit", folder / "out.aibit", metadata={"author.name": "we"})
        paths += rewrite.split(folder / "m.aibit", folder / "s.aibit", size // 2)
        paths += rewrite.merge(paths[1], folder / "back.aibit")
        for path in paths:
            assert shared_bytes(path) > os.path.getsize(path) - (4 << 20)  # the data begin after 2 MiB
        with sharded_reader.open(paths[1]) as shards, File(paths[0]) as edited, File(paths[-1]) as merged:
            for file in (shards, edited, merged):
                file.verify()
            with File(folder / "m.aibit") as original:  # but for slack, it is the same file
                assert np.array_equal(merged.tables.leaves, original.tables.leaves)
        there = sorted(os.listdir(folder))
        monkeypatch.setattr(extents, "WAYS", {"copy": lambda *arguments: pytest.fail("it is copied")})
        with pytest.raises(WriteError, match=f"out2.*cannot write {size} bytes: No space left"):
            rewrite.edit(folder / "m.aibit", folder / "out2.aibit", metadata={"author.name": "we"})
        assert sorted(os.listdir(folder)) == there
