"""Files appear whole or not at all."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from aibit_format.errors import WriteError
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan, write
from aibit_format.io import atomic
from aibit_format.io.atomic import AtomicFile
from aibit_format.schemes import make
from tests.support.faults import python

F32 = make("f32")
NAMELESS, NAMED = "without a name", "under a hidden name"


def unlinkable(monkeypatch):
    """A system on which every file has a name."""
    monkeypatch.setattr(atomic, "_nameless", lambda folder, mode: None)


def test_what_a_killed_writer_left_is_swept_up_and_what_a_live_one_writes_is_not(tmp_path, monkeypatch):
    unlinkable(monkeypatch)
    content = {Tensor("a", (4,), "f32", F32): {"values": np.ones(4, "<f4")}}
    left, live = tmp_path / ".aibit-0123456789abcdef.partial", tmp_path / ".aibit-fedcba9876543210.partial"
    folder, other = tmp_path / ".aibit-00000000000000ff.partial", tmp_path / ".aibit-mine.partial"
    left.write_bytes(b"half")
    (folder / "inside").mkdir(parents=True)
    other.write_bytes(b"not ours")
    with atomic.AtomicFile(str(tmp_path / "one")) as one, atomic.AtomicFolder(str(tmp_path / "two")) as two:
        assert not left.exists() and not folder.exists()
        write(tmp_path / "m.aibit", content)
        assert os.path.exists(one.name) and os.path.isdir(two.name)
        names = {os.path.basename(one.name), os.path.basename(two.name)}
        assert set(os.listdir(tmp_path)) == {"m.aibit", other.name, *names}
    assert not live.exists()
    assert set(os.listdir(tmp_path)) == {"m.aibit", other.name}


def test_a_file_without_a_name_is_in_no_folder(tmp_path):
    if atomic._nameless(folder := os.open(tmp_path, os.O_RDONLY), 0o666) is None:
        pytest.skip("files here have names")
    os.close(folder)
    with atomic.AtomicFile(str(tmp_path / "m")) as file:
        os.write(file.file, b"half")
        assert os.listdir(tmp_path) == []
        file.publish()
    assert (tmp_path / "m").read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["m"]


def test_without_what_only_some_systems_have(tmp_path):
    """Windows has none of these. To write there takes more; to read does not."""
    program = """
        import os, sys
        sys.modules["fcntl"] = sys.modules["resource"] = None
        for name in ("O_TMPFILE", "O_DIRECT", "RWF_NOWAIT", "posix_fallocate", "posix_fadvise", "fdatasync"):
            if hasattr(os, name):
                delattr(os, name)
        import aibit_format
        import numpy as np
        from aibit_format.file import rewrite
        from aibit_format.io import readahead
        from aibit_format.schemes import make
        from aibit_format.file.writer import Tensor, write
        folder, name = sys.argv[1], os.path.join(sys.argv[1], "m.aibit")
        with open(os.path.join(folder, ".aibit-0123456789abcdef.partial"), "wb"):
            pass  # nobody can tell whether it is left over
        values = np.arange(1 << 16, dtype="<f4")
        tensors = {Tensor(n, values.shape, "f32", make("f32")): {"values": values} for n in "ab"}
        write(name, tensors, {}, {"a.txt": b"text"})
        write(name, tensors, {}, {"a.txt": b"text"}, overwrite=True)
        first = rewrite.split(name, name, 1 << 18)[0]
        rewrite.split(name, name, 1 << 18, overwrite=True)
        for gone in ("pread", "preadv", "O_NONBLOCK", "O_CLOEXEC"):
            if hasattr(os, gone):
                delattr(os, gone)
        for path in (name, first):
            with aibit_format.open(path, verify="full") as file:
                assert np.array_equal(file.dequantize("b"), values) and bytes(file.documents["a.txt"]) == b"text"
        readahead.read_ahead(name)
        print(len(os.listdir(folder)))
    """
    assert int(python(program, tmp_path)) == 4


@pytest.mark.parametrize("how", [NAMELESS, NAMED])
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_writers_of_one_target(how, overwrite, tmp_path, monkeypatch):
    if how == NAMED:
        unlinkable(monkeypatch)
    path, results = str(tmp_path / "m.aibit"), []
    if overwrite:
        write(path, {Tensor("a", (1000,), "f32", F32): {"values": np.full(1000, -1, "<f4")}})
    barrier = threading.Barrier(4)

    def writer(value):
        tensor = Tensor("a", (1000,), "f32", F32)
        with Writer(path, plan([tensor], {}, {}), overwrite=overwrite) as out:
            out.write("a", {"values": np.full(1000, value, "<f4")})
            barrier.wait()
            try:
                out.commit()
                results.append(value)
            except WriteError as error:
                results.append(str(error))

    for _ in range(10):
        results.clear()
        threads = [threading.Thread(target=writer, args=(value,)) for value in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        won = [result for result in results if isinstance(result, int)]
        lost = [result for result in results if isinstance(result, str)]
        assert len(won) == (4 if overwrite else 1)
        assert all(path in message and "appeared" in message for message in lost)
        values = File(path, "full").dequantize("a")
        assert values[0] in won and (values == values[0]).all()
        assert os.listdir(tmp_path) == ["m.aibit"]
        if not overwrite:
            os.unlink(path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_has_the_permissions_of_the_one_it_replaces_from_the_start(mode, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    path.chmod(mode)
    with AtomicFile(str(path), overwrite=True) as out:
        assert os.fstat(out.file).st_mode & 0o777 == mode
        out.write(b"new")
        out.publish()
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    with AtomicFile(str(tmp_path / "m")) as out:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:3]))
            out.write(memoryview(b"0123456789"))
        out.publish()
    assert (tmp_path / "m").read_bytes() == b"0123456789"


def test_a_directory_in_the_place_of_a_file_and_a_missing_directory_are_named(tmp_path):
    for path in (str(tmp_path), f"{tmp_path}/", f"{tmp_path}/missing/"):
        for overwrite in (False, True):
            with pytest.raises(WriteError, match="is a directory; give the name of the file"):
                AtomicFile(path, overwrite)
    (tmp_path / "file").write_text("")
    for parent in ("missing", "file"):
        with pytest.raises(WriteError, match=f"{parent}; it must exist to write into"):
            AtomicFile(str(tmp_path / parent / "m"))
