"""The writer: what it refuses, and that a file is never half there."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import aibit_format
from aibit_format.container import layout
from aibit_format.errors import FormatError, SchemeError, WriteError
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan, write
from tests.support.written_files import F32, INT8, A, Q
from tools.fixtures import file_builder

ARRAY = np.arange(32, dtype="<f4").reshape(4, 8)
CODES = INT8.encode(ARRAY, "f32")


@pytest.fixture
def target(tmp_path):
    """Where to write; afterwards the folder must hold nothing but what has the final name."""
    path = tmp_path / "m.aibit"
    yield str(path)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".partial")] == []


# What the reader refuses is not planned


def test_names_and_documents_at_their_limits_are_written(target):
    names = ["a" * layout.MAX_NAME, "~!#$%&()*+,-./:;<=>?@[]^_`{|}"]
    documents = {"d" * layout.MAX_NAME: b"x", "a/b/c.txt": b""}
    content = {Tensor(n, (1,) * 8, "f32", F32): {"values": np.ones((1,) * 8, "<f4")} for n in names}
    write(target, content, {"a." + "b" * 253: 1}, documents)
    with File(target, "full") as file:
        assert file.keys() == names
        assert {name: bytes(data) for name, data in file.documents.items()} == documents


@pytest.mark.parametrize("alignment", layout.ALIGNMENTS)
@pytest.mark.parametrize("documents", [{}, {"a": b""}, {"a": b"x"}])
@pytest.mark.parametrize("elements", [0, 1, 100, 5000, 300_000])
def test_what_is_written_passes_a_full_verification(target, alignment, documents, elements):
    array = np.arange(elements, dtype="<f4")
    one = Tensor("one", (elements,), "f32", F32)
    two = Tensor("two", (elements,), "f32", F32)
    write(target, {one: {"values": array}, two: {"values": array + 1}}, {}, documents, alignment=alignment)
    with File(target, "full") as file:
        assert np.array_equal(file.planes("one")["values"], array)
        assert np.array_equal(file.planes("two")["values"], array + 1)


# Planes that are not the planned ones


@pytest.mark.parametrize(
    ("tensor", "planes", "error"),
    [
        pytest.param(A, {"values": ARRAY.astype("<f2")}, WriteError, id="dtype"),
        pytest.param(A, {"values": ARRAY.astype(">f4")}, WriteError, id="byte order"),
        pytest.param(A, {"values": ARRAY.view("<u4")}, WriteError, id="dtype of the same width"),
        pytest.param(A, {"values": ARRAY.reshape(8, 4)}, WriteError, id="shape"),
        pytest.param(A, {"values": ARRAY.reshape(32)}, WriteError, id="rank"),
        pytest.param(A, {"values": ARRAY[:3]}, WriteError, id="too short"),
        pytest.param(A, {"codes": ARRAY}, WriteError, id="role"),
        pytest.param(A, {}, WriteError, id="no planes"),
        pytest.param(Q, {"codes": CODES["codes"]}, WriteError, id="one plane missing"),
        pytest.param(Q, CODES | {"absmax": CODES["row_absmax"]}, WriteError, id="one plane too many"),
        pytest.param(Q, CODES | {"row_absmax": CODES["row_absmax"][:3]}, WriteError, id="too few scales"),
        pytest.param(Q, CODES | {"row_absmax": CODES["row_absmax"].astype("<f8")}, WriteError, id="scales of f64"),
        pytest.param(Q, CODES | {"row_absmax": -CODES["row_absmax"]}, SchemeError, id="negative scales"),
        pytest.param(Q, CODES | {"row_absmax": CODES["row_absmax"] * np.nan}, SchemeError, id="scales NaN"),
    ],
)
def test_planes_that_are_not_the_planned_ones_are_refused(target, tensor, planes, error):
    with pytest.raises(error) as caught:
        write(target, {tensor: planes})
    assert repr(tensor.name) in str(caught.value)
    assert not os.path.exists(target)


def test_an_alias_takes_no_planes(target):
    alias = Tensor("b", A.shape, "f32", F32, "a")
    with Writer(target, plan([A, alias], {}, {})) as writer, pytest.raises(WriteError):
        writer.write("b", {"values": ARRAY})


def test_planes_need_not_be_contiguous(target):
    wide = np.arange(64, dtype="<f4").reshape(8, 8)
    write(target, {A: {"values": wide[::2]}, Tensor("t", (8, 8), "f32", F32): {"values": wide.T}})
    with File(target, "full") as file:
        assert np.array_equal(file.planes("a")["values"], wide[::2])
        assert np.array_equal(file.planes("t")["values"], wide.T)


def test_a_document_of_another_length_is_refused(target):
    with Writer(target, plan([], {}, {"a": 3})) as writer, pytest.raises(WriteError, match="'a'"):
        writer.write_document("a", b"four")


@pytest.mark.parametrize(("name", "call"), [("a", "write"), ("d", "write_document")])
def test_what_was_not_written_is_named(target, name, call):
    with pytest.raises(WriteError, match=f"not written: {name}"), Writer(target, plan([A], {}, {"d": 1})) as writer:
        if call != "write":
            writer.write("a", {"values": ARRAY})
        else:
            writer.write_document("d", b"x")
        writer.commit()
    assert not os.path.exists(target)


# Metadata at commit


def test_metadata_may_change_at_commit_if_its_size_does_not(target):
    with Writer(target, plan([A], {"a.b": np.zeros(3)}, {})) as writer:
        writer.write("a", {"values": ARRAY})
        info = writer.commit({"a.b": np.array([1.0, 2.0, 3.0])})
    with File(target, "full") as file:
        assert file.metadata["a.b"].tolist() == [1, 2, 3]
        assert file.tables.front_matter() == info.front_matter()


@pytest.mark.parametrize("kind", [list, np.array])
def test_metadata_may_be_lists_or_arrays(target, kind):
    names = ("tensor", "relative_rms", "largest", "signal_to_noise_db")
    values = {f"quantization.error.{name}": kind([0 if name == "tensor" else 0.5]) for name in names}
    with Writer(target, plan([A], values, {})) as writer:
        writer.write("a", {"values": ARRAY})
        writer.commit(values)
    assert File(target, "full").metadata["quantization.error.largest"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("metadata", "error"),
    [({"a.b": np.zeros(99)}, WriteError), ({"a.b": np.nan}, FormatError), ({"model.parameters": 1}, FormatError)],
)
def test_metadata_that_does_not_fit_at_commit_leaves_no_file(target, metadata, error):
    with pytest.raises(error), Writer(target, plan([A], {"a.b": np.zeros(3)}, {})) as writer:
        writer.write("a", {"values": ARRAY})
        writer.commit(metadata)
    assert not os.path.exists(target)


# The name


def test_an_existing_file_is_not_touched_without_overwrite(target):
    with open(target, "wb") as file:
        file.write(b"mine")
    with pytest.raises(WriteError, match="overwrite"):
        write(target, {A: {"values": ARRAY}})
    with open(target, "rb") as file:
        assert file.read() == b"mine"


def test_a_link_to_nothing_counts_as_existing(target):
    os.symlink("nowhere", target)
    with pytest.raises(WriteError):
        write(target, {A: {"values": ARRAY}})
    assert os.path.islink(target)


def test_a_file_that_appears_meanwhile_is_not_replaced(target):
    with pytest.raises(WriteError, match="appeared"), Writer(target, plan([A], {}, {})) as writer:
        writer.write("a", {"values": ARRAY})
        with open(target, "wb") as file:
            file.write(b"mine")
        writer.commit()
    with open(target, "rb") as file:
        assert file.read() == b"mine"


def test_the_final_name_is_not_there_before_commit(target):
    with Writer(target, plan([A], {}, {})) as writer:
        assert not os.path.exists(target)
        writer.write("a", {"values": ARRAY})
        assert not os.path.exists(target)
        writer.commit()
        assert File(target, "full").keys() == ["a"]


@pytest.mark.parametrize("tensor", ["small", "large"])
def test_what_was_committed_cannot_be_written_to(target, tensor):
    sizes = {"small": 8, "large": 1 << 19}
    content = [Tensor(name, (size,), "f32", F32) for name, size in sizes.items()]
    with Writer(target, plan(content, {}, {})) as writer:
        for name, size in sizes.items():
            writer.write(name, {"values": np.zeros(size, "<f4")})
        writer.commit()
        with pytest.raises(WriteError):
            writer.write(tensor, {"values": np.ones(sizes[tensor], "<f4")})
    assert not File(target, "full").planes(tensor)["values"].any()


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    path = tmp_path / ("m" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 6) + ".aibit")
    write(path, {A: {"values": ARRAY}})
    assert File(path, "full").keys() == ["a"]


def test_leaving_without_commit_leaves_nothing(target):
    with Writer(target, plan([A], {}, {})) as writer:
        writer.write("a", {"values": ARRAY})
    assert os.listdir(os.path.dirname(target)) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_meanwhile_goes_up_and_leaves_nothing(target, error):
    big = Tensor("big", (4 << 20,), "f32", F32)
    with pytest.raises(error), Writer(target, plan([big, A], {}, {})) as writer:
        writer.write("big", {"values": np.zeros(4 << 20, "<f4")})
        raise error
    assert os.listdir(os.path.dirname(target)) == []


def test_an_open_mapping_of_the_old_file_survives_an_overwrite(target):
    write(target, {A: {"values": ARRAY}}, {"a.b": 1})
    old = File(target)
    view = old.planes("a")["values"]
    write(target, {A: {"values": ARRAY + 1}}, {"a.b": 2}, overwrite=True)
    assert np.array_equal(view, ARRAY)
    assert np.array_equal(old.dequantize("a"), ARRAY)
    assert old.metadata["a.b"] == 1
    assert old.verify().level == "full"
    assert np.array_equal(File(target, "full").planes("a")["values"], ARRAY + 1)


def test_a_failed_overwrite_leaves_the_old_file(target):
    write(target, {A: {"values": ARRAY}})
    with pytest.raises(WriteError):
        write(target, {A: {"values": ARRAY[:2]}}, overwrite=True)
    assert np.array_equal(File(target, "full").planes("a")["values"], ARRAY)


def test_a_folder_in_the_way_is_an_error(target):
    os.mkdir(target)
    with pytest.raises(WriteError):
        write(target, {A: {"values": ARRAY}}, overwrite=True)
    assert os.path.isdir(target)


def test_a_relative_path_is_written_where_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("m.aibit", {A: {"values": ARRAY}})
    assert os.listdir() == ["m.aibit"]
    assert File("m.aibit", "full").keys() == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_what_umask_leaves(target, umask):
    before = os.umask(umask)
    try:
        write(target, {A: {"values": ARRAY}})
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o666 & ~umask


def test_a_missing_folder_is_an_error_that_names_the_path(tmp_path):
    path = str(tmp_path / "missing" / "m.aibit")
    with pytest.raises(WriteError) as caught:
        write(path, {A: {"values": ARRAY}})
    assert path in str(caught.value)


# The same bytes


def test_metadata_and_documents_may_come_in_any_order(tmp_path):
    for name, turn in (("a", list), ("b", lambda items: list(items)[::-1])):
        content = {A: {"values": ARRAY}, Q: CODES}
        metadata, documents = dict(turn({"a.b": 1, "a.c": 2}.items())), dict(turn({"x": b"1", "y": b"2"}.items()))
        write(str(tmp_path / name), content, metadata, documents)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_may_be_written_in_any_order_and_twice(tmp_path):
    info = plan([A, Q], {}, {"d": 1})
    for name, order in (("a", "aq"), ("b", "qaqa")):
        with Writer(str(tmp_path / name), info) as writer:
            for tensor in order:
                writer.write(tensor, CODES if tensor == "q" else {"values": ARRAY})
            writer.write_document("d", b"x")
            writer.commit()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_planes_of_many_leaves_are_the_same_whatever_the_threads(target, jobs):
    sizes = (3 << 18, (1 << 18) + 5, 100, (5 << 20) + 1)
    content = [Tensor(f"t{i}", (size,), "f32", F32) for i, size in enumerate(sizes)]
    with Writer(target, plan(content, {}, {})) as writer, ThreadPoolExecutor(jobs) as pool:
        for i, size in enumerate(sizes):
            pool.submit(writer.write, f"t{i}", {"values": np.arange(size, dtype="<f4")})
        pool.shutdown()
        writer.commit()
    with open(target, "rb") as file:
        data = file.read()
    assert file_builder.body(data, "leaves") == file_builder.leaf_table(data)
    File(data, "full")


# Dying and full disks

CHILD = """
import sys, time
import numpy as np
from aibit_format.schemes import make
from aibit_format.file.writer import Tensor, Writer, plan

def say(text):
    print(text, flush=True)

path, size = sys.argv[1], 1 << 20
content = [Tensor(f"t{i}", (size,), "f32", make("f32")) for i in range(6)]
with Writer(path, plan(content, {}, {"d": 1})) as writer:
    say("created")
    for tensor in content:
        writer.write(tensor.name, {"values": np.ones(size, "<f4")})
        say(tensor.name)
    writer.write_document("d", b"x")
    say("committing")
    writer.commit()
    say("done")
"""


def child(program, *arguments, **options):
    folder = os.path.dirname(aibit_format.__path__[0])
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=os.environ | {"PYTHONPATH": folder},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "delay"), [("created", 0), ("t0", 0), ("t4", 0.002), ("committing", 0), ("committing", 0.004), ("done", 0)]
)
def test_a_writer_that_is_killed_leaves_nothing_under_the_final_name(line, delay, tmp_path):
    path = tmp_path / "m.aibit"
    process = child(CHILD, str(path))
    try:
        for said in process.stdout:
            if said.strip() == line:
                break
        else:
            pytest.fail(process.stderr.read())
        assert not path.exists() or line in {"committing", "done"}
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if line == "done" or (line == "committing" and path.exists()):
        assert len(File(str(path), "full")) == 6
    else:
        assert not path.exists()


FULL = """
import os, resource, sys
import numpy as np
from aibit_format.errors import WriteError
from aibit_format.schemes import make
from aibit_format.file.writer import Tensor, write

path, limit, allocate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if allocate == "sparse":
    os.posix_fallocate = lambda file, offset, length: None
sizes = (9, 1 << 20, 9)
content = {Tensor(f"t{i}", (n,), "f32", make("f32")): {"values": np.ones(n, "<f4")} for i, n in enumerate(sizes)}
try:
    write(path, content)
except WriteError as error:
    sys.exit(0 if path in str(error) else str(error))
sys.exit("was written")
"""


def check_full(path, limit, allocate):
    process = child(FULL, str(path), str(limit), allocate)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("allocate", ["allocated", "sparse"])
@pytest.mark.parametrize("limit", [1 << 10, 1 << 20])
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
def test_a_file_beyond_the_limit_is_a_write_error(limit, allocate, tmp_path):
    check_full(tmp_path / "m.aibit", limit, allocate)


@pytest.mark.parametrize("allocate", ["allocated", "sparse"])
def test_a_full_disk_is_a_write_error(allocate, tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        check_full(tmp_path / "m.aibit", 0, allocate)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "link", "preadv"])
def test_a_disk_that_fails_is_a_write_error_and_leaves_nothing(call, target, monkeypatch):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    with pytest.raises(WriteError, match=target), Writer(target, plan([A, Q], {}, {})) as writer:
        monkeypatch.setattr(os, call, fails)
        writer.write("a", {"values": ARRAY})
        writer.write("q", CODES)
        writer.commit()
    monkeypatch.undo()
    assert os.listdir(os.path.dirname(target)) == []
