"""Faults: a process killed at any moment, disks and folders that fail, files that change under their readers.

Nothing that was there is lost, and nothing half-made stays.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import craft
import numpy as np
import pytest
from conftest import ROOT

import aibit_format as aibit
from aibit_format.container import layout
from aibit_format.errors import FormatError, SourceError, WriteError
from aibit_format.file import rewrite as rewriting
from aibit_format.file import sharded_reader
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan, write
from aibit_format.io import atomic, lease
from aibit_format.schemes import make

GOOD = craft.good()
F32 = make("f32")
NAMELESS, NAMED = "without a name", "under a hidden name"


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def python(program, *arguments, **options):
    """A Python that runs ``program``; what it prints, or the test's failure with what it complained of."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment(), capture_output=True, text=True, timeout=1200, check=False, **options,
    )  # fmt: skip
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return result.stdout


def unlinkable(monkeypatch):
    """A system on which every file has a name."""
    monkeypatch.setattr(atomic, "_nameless", lambda folder: None)


# Killed

# Forks children, each of which does ``job``, and kills each: ``shots`` of them at a random moment within the time that
# the job takes, or, without any, one before each call by which it changes a folder or syncs it. After each ``check``
# looks at what is there. Imports are done once, before any thread is started.
KILLER = """
    import itertools, json, os, random, signal, sys, time
    import jobs_to_kill

    def dying(call, counter, last):
        def counted(*arguments, **options):
            if next(counter) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counted

    def start(last=0):
        child = os.fork()
        if not child:
            counter = itertools.count(1)
            for name in ("link", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
                setattr(os, name, dying(getattr(os, name), counter, last))
            try:
                job()
                os._exit(0)
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
        return child

    name, folder, source, shots, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    job, check = jobs_to_kill.prepare(name, folder, source)
    rng, found, longest = random.Random(seed), {}, 60
    for _ in range(3):
        started = time.monotonic()
        if os.waitpid(start(), 0)[1]:
            sys.exit("unharmed, it fails")
        longest = min(longest, time.monotonic() - started)
        what = f"unharmed: {check()}"
        found[what] = found.get(what, 0) + 1
    for _ in range(shots):
        child = start()
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        longest *= 1.1 if killed else 0.8  # the machine has other things to do, now more of them and now less
        what = f"{'killed' if killed else 'done'}: {check()}"
        found[what] = found.get(what, 0) + 1
    for last in itertools.count(1) if not shots else ():
        killed = os.WIFSIGNALED(os.waitpid(start(last), 0)[1])
        what = f"{'killed' if killed else 'done'}: {check()}"
        found[what] = found.get(what, 0) + 1
        if not killed:
            break
    print(json.dumps(found))
"""


def kill(name, folder, source, shots, seed=0):
    """What was there after each kill, and how often."""
    found = json.loads(python(KILLER, name, folder, source, shots, seed).splitlines()[-1])
    assert not shots or sum(found.values()) == shots + 3
    assert sum(count for what, count in found.items() if what.startswith("killed")) > shots // 4, found
    return found


@pytest.fixture(scope="session")
def model(fixtures):
    return str(fixtures / "models" / "tiny-llama")


SHOTS = {
    "new": 100, "overwrite": 50, "overwrite, named": 50, "export": 15, "split": 40, "convert to shards": 30,
    "split over shards": 40, "convert over shards": 30, "merge": 20, "edit": 20,
}  # fmt: skip


@pytest.mark.parametrize("job", SHOTS)
def test_killed_at_any_moment(job, model, tmp_path):
    kill(job, tmp_path, model, SHOTS[job])
    # What the next conversion into the folder leaves is its own file, and nothing else.
    aibit.convert(model, tmp_path / "after.aibit", "int8")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("job", [pytest.param(job, marks=[pytest.mark.slow] * ("convert" in job)) for job in SHOTS])
def test_killed_at_every_step(job, model, tmp_path):
    found = kill(job, tmp_path, model, 0)
    if job.endswith("over shards"):
        assert {"killed: old, and others beside it", "killed: new, and others beside it"} < set(found)


@pytest.mark.slow
@pytest.mark.parametrize("job", SHOTS)
def test_killed_at_a_thousand_moments(job, model, tmp_path):
    kill(job, tmp_path, model, 1000, seed=1)


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
    if atomic._nameless(folder := os.open(tmp_path, os.O_RDONLY)) is None:
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
        from aibit_format import prefetch, rewrite
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
        prefetch.read_ahead(name)
        print(len(os.listdir(folder)))
    """
    assert int(python(program, tmp_path)) == 4


# Disks and folders


def converted(model, target, **options):
    with pytest.raises(WriteError) as caught:
        aibit.convert(model, target, "int8", **options)
    assert str(target) in str(caught.value)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system in memory; skips where that is not allowed."""
    places = []

    def mount(*options):
        place = tmp_path / f"disk{len(places)}"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_a_conversion_to_a_full_disk_leaves_what_was_there(model, mounted):
    place = mounted("-o", "size=64k")
    (place / "m.aibit").write_bytes(b"old")
    converted(model, place / "m.aibit", overwrite=True)
    assert os.listdir(place) == ["m.aibit"]
    assert (place / "m.aibit").read_bytes() == b"old"


def test_an_export_to_a_full_disk_leaves_nothing(model, mounted, tmp_path):
    from aibit_format.formats.exports import export

    aibit.convert(model, tmp_path / "m.aibit", "int8")
    place = mounted("-o", "size=64k")
    with File(tmp_path / "m.aibit") as file, pytest.raises(WriteError, match="No space"):
        export(file, "safetensors", str(place / "out"))
    assert os.listdir(place) == []


def test_a_conversion_to_a_disk_that_cannot_be_written_leaves_what_was_there(model, mounted):
    place = mounted("-o", "size=1m")
    (place / "m.aibit").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    converted(model, place / "m.aibit", overwrite=True)
    converted(model, place / "new.aibit")
    assert os.listdir(place) == ["m.aibit"]


def test_a_folder_of_somebody_else_is_a_write_error():
    program = """
        import os, sys
        import numpy as np
        from aibit_format.errors import WriteError
        from aibit_format.schemes import make
        from aibit_format.file.writer import Tensor, write
        content = {Tensor("a", (4,), "f32", make("f32")): {"values": np.ones(4, "<f4")}}
        if os.getuid() == 0:  # to whom no folder is closed
            os.setgid(65534)
            os.setuid(65534)
        try:
            write(sys.argv[1], content)
        except WriteError as error:
            print(error)
    """
    folder = tempfile.mkdtemp()  # not below the test's own, which others may not enter
    try:
        os.chmod(folder, 0o555)  # noqa: S103
        assert "Permission denied" in python(program, os.path.join(folder, "m.aibit"))
        assert os.listdir(folder) == []
    finally:
        os.rmdir(folder)


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


def test_two_writers_of_one_set_of_shards(tmp_path):
    """Both replace it at once, again and again: what is there afterwards is all of one."""
    models = []
    for value in (1, 2):
        models.append(str(tmp_path / f"{value}.aibit"))
        tensors = {Tensor(f"t{i}", (64,), "f32", make("f32")): {"values": np.full(64, value, "<f4")} for i in range(20)}
        write(models[-1], tensors, {"a.b": value}, {})
    target, start = str(tmp_path / "m.aibit"), threading.Barrier(2)

    def replace(path):
        start.wait()
        rewriting.split(path, target, 256, overwrite=True)

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(replace, models))
        names = sorted(os.listdir(tmp_path))
        assert not [name for name in names if name.startswith(".") or name.endswith(".previous")]
        with sharded_reader.open(tmp_path / next(name for name in names if name.startswith("m-00001")), "full") as file:
            assert {float(file.dequantize(name)[0]) for name in file} == {float(file.metadata["a.b"])}


def test_two_converters_of_one_target(model, tmp_path):
    program = """
        import os, sys
        import jobs_to_kill
        from aibit_format.convert.convert import prepare, run
        from aibit_format.convert.recipe import Recipe
        plans = [prepare(sys.argv[1], Recipe.of(scheme)) for scheme in ("int8", "bf16")]
        children = []
        for plan in plans:
            children.append(os.fork())
            if not children[-1]:
                try:
                    run(plan, sys.argv[2])
                    os.write(1, b"won\\n")
                except jobs_to_kill.WriteError as error:
                    os.write(1, f"lost: {error}\\n".encode())
                os._exit(0)
        sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
    """
    said = sorted(python(program, model, tmp_path / "m.aibit").splitlines())
    assert said[0].startswith("lost: ") and str(tmp_path / "m.aibit") in said[0] and said[1:] == ["won"], said
    with File(tmp_path / "m.aibit", "full") as file:
        assert len(file) > 10
    assert os.listdir(tmp_path) == ["m.aibit"]


# Sources


@pytest.mark.parametrize("change", ["rewritten", "grown", "replaced", "removed"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_that_changes_while_it_is_converted(change, overwrite, model, tmp_path):
    source, target = tmp_path / "source", tmp_path / "out" / "m.aibit"
    shutil.copytree(model, source)
    target.parent.mkdir()
    if overwrite:
        target.write_bytes(b"old")
    weights = next(source.glob("*.safetensors"))

    def meddle(done, total, name):
        if not changed:
            changed.append(name)
            MEDDLERS[change](weights)

    changed: list[str] = []
    with pytest.raises(SourceError, match=f"{weights.name}.*changed"):
        aibit.convert(str(source), target, "int8", overwrite=overwrite, on_progress=meddle)
    assert changed
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"old"] * overwrite


def rewrite(path):
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell


def grow(path):
    with open(path, "ab") as file:
        file.write(bytes(8))


def replace(path):
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


MEDDLERS = {"rewritten": rewrite, "grown": grow, "replaced": replace, "removed": os.unlink}


# Files that change under their readers

# Reads a large file over and over, in every way that this package reads by itself, while another process truncates it.
READER = """
    import os, sys, time
    from aibit_format import still
    from aibit_format.errors import FormatError
    from aibit_format.file.reader import File

    path, how, call = sys.argv[1:4]
    if how == "by copying":
        still._take_lease = lambda storage: None
    file = File(path, "touched" if call == "planes" else "structure")
    calls = {
        "verify": file.verify,
        "dequantize": lambda: file.dequantize("codes"),
        "planes": lambda: file.check_leaves(file.data.start, file.data.end - file.data.start),
        "open": lambda: File(path),
        "document": lambda: file.documents["a.txt"],
        "content_digest": file.content_digest,
    }
    print("ready", flush=True)
    try:
        while True:
            calls[call]()
            file._checked[:] = False
    except FormatError as error:
        # Opened anew, it is a short file; else it is one that changed.
        sys.exit(0 if error.code == "AIB-E802" or (call == "open" and error.code == "AIB-E101") else str(error))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 24 MB: a moment's work for every way of reading."""
    path = tmp_path_factory.mktemp("large") / "m.aibit"
    values = np.random.default_rng(0).integers(-100, 100, 1 << 24, dtype=np.int8)
    codes = Tensor("codes", (4096, 1024), "f32", make("int8"))
    planes = {"codes": values[: 1 << 22].reshape(4096, 1024), "row_absmax": np.ones(4096, "<f4")}
    plain = Tensor("plain", (1 << 24,), "i8", make("i8"))
    write(path, {codes: planes, plain: {"values": values}}, {}, {"a.txt": bytes(1 << 22)})
    return path


@pytest.mark.parametrize("how", ["under a lease", "by copying"])
@pytest.mark.parametrize("call", ["verify", "dequantize", "planes", "open", "document", "content_digest"])
def test_a_file_truncated_while_it_is_read_is_an_error_and_not_a_crash(call, how, large, tmp_path):
    if how == "under a lease" and not leases(large):
        pytest.skip("the system gives no leases on this file")
    path = tmp_path / "m.aibit"
    shutil.copy(large, path)
    command = [sys.executable, "-c", textwrap.dedent(READER), str(path), how, call]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"ready", process.stderr.read()
        time.sleep(random.Random(call).uniform(0.01, 0.1))
        started = time.monotonic()
        os.truncate(path, 0)
        waited = time.monotonic() - started
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, (process.returncode, said[-1000:])
    assert waited < 30  # a lease is given back soon


def leases(path):
    with lease.still(File(path).storage) as reading:
        return isinstance(reading, lease._Leased)


def test_whoever_would_write_waits_for_the_lease_and_the_reader_is_told(large, tmp_path):
    if not leases(large):
        pytest.skip("the system gives no leases on this file")
    path = tmp_path / "m.aibit"
    shutil.copy(large, path)
    with File(path) as file, lease.still(file.storage) as reading:
        assert reading.read_at(0, 100).base is not None
        command = [sys.executable, "-c", "import os, sys; os.truncate(sys.argv[1], 0)", str(path)]
        writer = subprocess.Popen(command)
        with pytest.raises(FormatError, match="about to") as caught:
            while writer.poll() is None:
                reading.read_at(0, 100)
        assert caught.value.code == "AIB-E802"
        assert writer.poll() is None and path.stat().st_size == large.stat().st_size
    assert writer.wait(timeout=60) == 0
    assert path.stat().st_size == 0


def test_the_root_is_read_once_and_takes_no_lease_after_that(large, tmp_path, monkeypatch):
    path = tmp_path / "m.aibit"
    shutil.copy(large, path)
    with File(path) as file:
        monkeypatch.setattr(lease, "_take_lease", None)
        assert file.root == file.verified().root == file.tables.root().hex()
        os.truncate(path, layout.LEAF)
        with pytest.raises(FormatError, match="changed") as caught:
            file.root  # noqa: B018
        assert caught.value.code == "AIB-E802"


def test_a_file_that_somebody_has_open_for_writing_is_copied(large, tmp_path):
    path = tmp_path / "m.aibit"
    shutil.copy(large, path)
    with File(path) as file, open(path, "r+b") as writer:
        assert not leases(path)
        assert file.verify().level == "full"
        assert np.array_equal(file.dequantize("codes"), File(large).dequantize("codes"))
        os.ftruncate(writer.fileno(), layout.LEAF)
        with lease.still(File(large).storage) as other:
            assert len(other.read_at(0, 10)) == 10
        with pytest.raises(FormatError) as caught:
            file.storage.copy(0, 2 * layout.LEAF)
        assert (caught.value.code, caught.value.found) == ("AIB-E802", layout.LEAF)


SPARSE = 64 << 30  # bytes: more than this machine's memory, or most


def test_a_mapping_larger_than_memory(tmp_path):
    path = tmp_path / "m.aibit"
    small = craft.good([("huge", "f16", "f16", (64, 64), None), ("small", "f32", "f32", (3,), None)], {}, {})
    lengths, roles = [SPARSE, 12], craft.table(small, "plane")["role"].tolist()
    _, _, start, _, end = craft.place(0, [], lengths, roles, 4096)
    leaves = -(-(end - start) // layout.LEAF)
    data = bytearray(craft.rebuilt(leaves=(leaves, bytes(8 * leaves)))(small))
    front = craft.front_end(data)
    *_, offsets, end = craft.place(front, [], lengths, roles, 4096)
    craft.table(data, "tensor")["shape"][0, :2] = SPARSE // 2048, 1024
    craft.table(data, "plane")["length"], craft.table(data, "plane")["offset"] = lengths, offsets
    craft.table(data, "header")["file_size"] = end
    path.write_bytes(craft.reseal(data)[:front])
    try:
        os.truncate(path, end)
    except OSError as error:
        pytest.skip(f"no sparse file of {end} bytes here: {error.strerror}")
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("files here are not sparse")
    program = """
        import resource, sys
        from aibit_format.file.reader import File
        with File(sys.argv[1]) as file:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            plane = file.planes("huge")["values"]
            assert plane.nbytes == int(sys.argv[2]), plane.nbytes
            assert not plane[-1].any() and not plane[len(plane) // 2].any()
            info = file.info("huge")
            rows = info.scheme.decode_rows(file.planes("huge"), info.shape, info.dtype, slice(-4, None))
            assert rows.shape == (4, 1024) and not rows.any()
            assert not file.dequantize("small").any()
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    assert int(python(program, path, SPARSE)) < 64 << 20
