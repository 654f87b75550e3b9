"""Bytes of one file put into another: shared, copied by the kernel, or by this process."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.errors import FormatError
from aibit_format.io import extents
from aibit_format.io.mapped import Mapped
from tests.support.extents import SYSTEMS, small_disk
from tools.bench.rewriting import shared_bytes

DATA = os.urandom(5 * 4096 + 1000)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    with contextlib.closing(Mapped(tmp_path / "source")) as file:
        yield file


@pytest.fixture
def target(tmp_path):
    file = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.truncate(file, 8 * 4096)
    yield file
    os.close(file)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("start", "offset", "length"), [(0, 0, len(DATA)), (64, 4160, 9000), (10, 3, 5000), (7, 9, 0)])
def test_bytes_are_put_where_they_belong_and_nowhere_else(source, target, monkeypatch, system, start, offset, length):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS[system])
    shared = extents.clone(source, start, target, offset, length)
    for piece in extents.outside([shared] if shared else [], offset, offset + length):
        extents.copy(source, piece.start - offset + start, target, piece.start, len(piece))
    assert os.pread(target, 1 << 20, 0) == (
        bytes(offset) + DATA[start : start + length] + bytes(8 * 4096 - offset - length)
    )


@pytest.mark.parametrize(
    ("start", "offset", "length", "shared"),
    [
        (0, 0, 4096, range(4096)), (0, 4096, 9000, range(4096, 12288)), (64, 4160, 9000, range(8192, 12288)),
        (4095, 4095, 4097, range(4096, 8192)), (0, 64, 9000, range(0)), (64, 64, 4096, range(0)),
        (0, 0, 4095, range(0)),
    ],
)  # fmt: skip
def test_whole_blocks_that_agree_are_shared(source, target, monkeypatch, start, offset, length, shared):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS["blocks"])
    assert os.fstat(target).st_blksize == 4096
    assert extents.clone(source, start, target, offset, length) == shared


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 60), st.integers(0, 60))
def test_what_lies_outside_of_ranges(edges, start, end):
    edges.sort()
    ranges = [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    found = list(extents.outside(ranges, start, end))
    inside = {i for shared in ranges for i in shared}
    assert [i for piece in found for i in piece] == [i for i in range(start, end) if i not in inside]
    assert all(found)


def calling(monkeypatch, call):
    """Let ``call`` take the place of what the kernel does."""
    monkeypatch.setattr(extents.os, "copy_file_range", lambda *arguments: call(), raising=False)
    monkeypatch.setattr(extents.fcntl, "ioctl", lambda *arguments: call())
    ways = {"clone": extents._clone, "copy in the kernel": extents._copy_in_the_kernel, "copy": extents._copy}
    monkeypatch.setattr(extents, "WAYS", ways)


REFUSED = ("EOPNOTSUPP", "ENOTTY", "ENOSYS", "EXDEV", "EINVAL", "ETXTBSY", "EPERM")


@pytest.mark.skipif(extents.fcntl is None, reason="no ioctl here")
@pytest.mark.parametrize("code", REFUSED)
def test_what_the_system_refuses_is_done_in_another_way(source, target, monkeypatch, code):
    def refuse():
        raise OSError(getattr(errno, code), code)

    calling(monkeypatch, refuse)
    assert not extents.clone(source, 0, target, 0, 8192)
    extents.copy(source, 0, target, 0, len(DATA))
    assert os.pread(target, len(DATA), 0) == DATA


@pytest.mark.skipif(extents.fcntl is None, reason="no ioctl here")
@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EDQUOT", "EFBIG"])
def test_what_fails_is_not_tried_in_another_way(source, target, monkeypatch, code):
    def fail():
        raise OSError(getattr(errno, code), code)

    calling(monkeypatch, fail)
    for put in (extents.clone, extents.copy):
        with pytest.raises(OSError, match=code):
            put(source, 0, target, 0, len(DATA))


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the kernel does not copy here")
@pytest.mark.parametrize("most", [1, 1000, 0])
def test_the_kernel_may_copy_less_than_it_was_asked_for(source, target, monkeypatch, most):
    real = os.copy_file_range

    def short(source, target, count, start, offset):
        return real(source, target, min(count, most), start, offset) if most else 0

    monkeypatch.setattr(extents.os, "copy_file_range", short)
    extents.copy(source, 0, target, 5, 3000)
    assert os.pread(target, 3005, 0) == bytes(5) + DATA[:3000]


@pytest.mark.parametrize("system", ["the kernel", "this process"])
def test_a_source_that_has_become_shorter_is_an_error(source, target, monkeypatch, tmp_path, system):
    monkeypatch.setattr(extents, "WAYS", SYSTEMS[system])
    os.truncate(tmp_path / "source", 5000)
    with pytest.raises(FormatError) as caught:
        extents.copy(source, 0, target, 0, 6000)
    assert caught.value.code == "AIB-E802"


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_file_system_shares_what_is_said_to_be_shared(tmp_path, kind):
    with small_disk(tmp_path, 512 << 20, kind) as folder:
        (folder / "source").write_bytes(DATA)
        source, target = Mapped(folder / "source"), os.open(folder / "target", os.O_RDWR | os.O_CREAT)
        try:
            os.truncate(target, len(DATA) + 4096)
            assert extents.clone(source, 0, target, 4096, len(DATA)) == range(4096, 6 * 4096)
            assert shared_bytes(folder / "target") == 5 * 4096
            assert os.pread(target, 5 * 4096, 4096) == DATA[: 5 * 4096]
        finally:
            source.close()
            os.close(target)
