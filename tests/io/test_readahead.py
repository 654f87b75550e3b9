"""Reading ahead: what is in memory is left alone, and the rest is brought there."""

from __future__ import annotations

import os
import sys
from threading import Event

import pytest

from aibit_format.io import readahead as ahead
from aibit_format.io.readahead import PIECE_BYTES, prefetch, read_ahead


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a system that drops pages when asked")
def test_only_what_is_not_in_memory_is_read(tmp_path):
    path, size = tmp_path / "file", 2 * PIECE_BYTES + 1000
    path.write_bytes(os.urandom(size))
    assert read_ahead(path) in (0, size)  # 0 where the system can say that it is in memory
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    first, second = read_ahead(path), read_ahead(path)
    assert second <= first <= size
    if sys.platform == "linux" and first:
        assert first >= PIECE_BYTES and second == 0  # the last pages may have stayed


def test_it_stops_when_there_is_enough(tmp_path, monkeypatch):
    path, enough, asked = tmp_path / "file", Event(), []
    path.write_bytes(bytes(5 * PIECE_BYTES))

    def resident(file: int, start: int, length: int) -> bool:
        asked.append(start)
        if start == PIECE_BYTES:
            enough.set()
        return True

    monkeypatch.setattr(ahead, "is_resident", resident)
    assert read_ahead(path, enough) == 0
    assert asked == [0, PIECE_BYTES]


def test_a_file_that_cannot_be_read_is_no_error(tmp_path):
    assert read_ahead(tmp_path / "nothing") == 0
    assert read_ahead(tmp_path) == 0
    thread = prefetch(tmp_path / "nothing")
    thread.join(10)
    assert not thread.is_alive() and thread.daemon


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a system that drops pages when asked")
def test_where_advice_is_not_taken_the_file_is_read(tmp_path, monkeypatch):
    path, size = tmp_path / "file", PIECE_BYTES + 1000
    path.write_bytes(os.urandom(size))
    reads, read = [], os.preadv

    def counted(file, buffers, at, *flags):
        if not flags:
            reads.append((at, sum(map(len, buffers))))
        return read(file, buffers, at, *flags)

    monkeypatch.setattr(ahead, "is_resident", lambda *_: False)
    monkeypatch.setattr(os, "preadv", counted)
    assert read_ahead(path) == size
    assert reads == [(PIECE_BYTES - 1, 1), (0, PIECE_BYTES), (size - 1, 1), (PIECE_BYTES, PIECE_BYTES)]
