"""Files stay as they were while they are read."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from aibit_format.container import layout
from aibit_format.errors import FormatError
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write
from aibit_format.io import lease
from aibit_format.schemes import make
from tests.support.faults import environment

# Reads a large file over and over, in every way that this package reads by itself, while another process truncates it.
READER = """
    import os, sys, time
    from aibit_format.io import lease
    from aibit_format.errors import FormatError
    from aibit_format.file.reader import File

    path, how, call = sys.argv[1:4]
    if how == "by copying":
        lease._take_lease = lambda storage: None
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
