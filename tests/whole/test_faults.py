"""Faults: a process killed at any moment, disks and folders that fail, files that change under their readers.

Nothing that was there is lost, and nothing half-made stays.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import SourceError, WriteError
from aibit_format.file import rewrite as rewriting
from aibit_format.file import sharded_reader
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write
from aibit_format.schemes import make
from tests.support.faults import python
from tests.support.paths import ROOT
from tools.fixtures import file_builder
from tools.fuzz import disk

GOOD = file_builder.good()

# Killed

# Forks children, each of which does ``job``, and kills each: ``shots`` of them at a random moment within the time that
# the job takes, or, without any, one before each call by which it changes a folder or syncs it. After each ``check``
# looks at what is there. Imports are done once, before any thread is started.
KILLER = """
    import itertools, json, os, random, signal, sys, time
    from tests.support import jobs_to_kill

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


# Call by call

FAST = "sign --new-key"  # the others take a minute or two each


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("verb", [pytest.param(v, marks=[pytest.mark.slow] * (v != FAST)) for v in disk.VERBS])
def test_every_call_that_changes_a_file_may_fail(verb):
    command = [sys.executable, "-m", "tools.fuzz.disk", verb]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1].split("|")[3]) >= 30  # so many ways were tried


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
        from tests.support import jobs_to_kill
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
