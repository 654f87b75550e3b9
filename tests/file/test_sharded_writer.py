"""Models cut into shards."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import shutil
import threading

import pytest

from aibit_format.errors import WriteError
from aibit_format.file import rewrite, sharded_reader, sharded_writer
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer
from aibit_format.schemes import make
from tests.support.sharded_models import SIZE
from tests.support.sharded_models import model as model
from tests.support.sharded_models import paths as paths


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
