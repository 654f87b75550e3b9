"""Room for a file before it is written."""

import os
from types import SimpleNamespace

import pytest

import aibit_format as aibit
from aibit_format.errors import WriteError
from aibit_format.io import preallocate
from tests.support.rows import models as models
from tests.support.rows import small_pages as small_pages

MEMORY = "/dev/shm"  # noqa: S108 - where Linux has one


def test_which_file_systems_are_in_memory(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        preallocate.make_room(file.fileno(), 12345)
        assert os.fstat(file.fileno()).st_size == 12345
    with open("/proc/mounts") as mounts:
        if not any(line.split()[1:3] == [MEMORY, "tmpfs"] for line in mounts):
            pytest.skip(f"{MEMORY} is no file system in memory here")
    name = f"{MEMORY}/aibit-test-{os.getpid()}"
    try:
        with open(name, "wb") as file:
            assert preallocate.is_in_memory(file.fileno())
            preallocate.make_room(file.fileno(), 1 << 20)
            status = os.fstat(file.fileno())
            assert (status.st_size, status.st_blocks) == (1 << 20, 0)
            free = os.statvfs(name).f_bavail * os.statvfs(name).f_frsize
            with pytest.raises(OSError, match="No space left"):
                preallocate.make_room(file.fileno(), free + (1 << 30))
    finally:
        os.unlink(name)


def test_shards_need_room_together(models, tmp_path, monkeypatch):
    """In memory room is only looked for: each shard would find what the others will take."""
    shards = {"max_shard_size": 1 << 20}
    aibit.convert(models["float16"], tmp_path / "a.aibit", **shards)
    sizes = [path.stat().st_size for path in tmp_path.glob("a-*.aibit")]
    assert len(sizes) > 2
    full = SimpleNamespace(f_blocks=1, f_bavail=sum(sizes), f_frsize=1)
    monkeypatch.setattr(preallocate, "is_in_memory", lambda where: True)
    monkeypatch.setattr(preallocate.os, "statvfs", lambda where: full)
    aibit.convert(models["float16"], tmp_path / "b.aibit", **shards)
    full.f_bavail -= 1
    with pytest.raises(WriteError, match=f"cannot write {sum(sizes)} bytes: No space left"):
        aibit.convert(models["float16"], tmp_path / "c.aibit", **shards)
    assert not list(tmp_path.glob("c-*"))
