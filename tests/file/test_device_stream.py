"""Bytes of a file on their way to a device."""

from __future__ import annotations

import mmap
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.container.layout import LEAF
from aibit_format.container.placement import Region
from aibit_format.container.tables import Plane
from aibit_format.errors import FormatError
from aibit_format.file import device_stream
from aibit_format.io.mapped import Mapped
from aibit_format.torch.load import arena
from aibit_format.torch.load.arena import Arena
from tests.support.arenas import CPU, SMALL, Late, LateSlot, assert_equal, every
from tests.support.arenas import on_a_cpu as on_a_cpu
from tests.support.arenas import path as path


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aibit-stream")]


def forget(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ring_and_any_choice_of_planes(path, data):
    threads = data.draw(st.integers(1, 9), "threads")
    slots = threads + data.draw(st.integers(0, 9), "slots")
    ring = device_stream.Ring(threads, slots, LEAF * data.draw(st.integers(1, 5), "leaves"))
    file = aibit.open(path, verify=data.draw(st.sampled_from(["structure", "touched"])))
    planes = data.draw(st.lists(st.sampled_from(every(file))))
    if data.draw(st.booleans(), "cold") and hasattr(os, "posix_fadvise"):
        forget(path)
    filled = Arena(file, planes, CPU, ring)
    assert_equal(filled, file, planes)
    wanted = sum(length for _, length in {(plane.offset, plane.length) for plane in planes})
    assert filled.layout.size <= wanted + len(planes) * (device_stream._GAP + 2 * device_stream.PAGE)
    assert not threads_left()


ROW = st.tuples(st.integers(0, 1 << 16), st.integers(1, 1 << 18))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ROW, max_size=20), st.sampled_from([0, 64, 4096, 5 << 19]), st.integers(1, 3),
    st.sampled_from([LEAF, device_stream.PAGE]), st.integers(0, 1 << 20),
)  # fmt: skip
def test_pieces_cover_the_chunks_once_and_are_whole_units(rows, start, leaves, unit, more):
    planes, at = [], start
    for gap, length in rows:
        at += gap // 64 * 64
        planes.append(Plane("values", "u8", (length,), at, length))
        at += -(-length // 64) * 64
    region = Region(start, max([start, *(plane.offset + plane.length for plane in planes)]) + more, 0)
    layout, size = device_stream.ArenaLayout.of(planes, region), leaves * LEAF
    pieces = list(layout.pieces(region, size, unit))
    assert sum(piece.count for piece in pieces) == sum(s.end - s.start for s in layout.chunks)
    covered = np.zeros(layout.size, np.uint8)
    for piece in pieces:
        assert 0 < piece.length <= size and piece.first + piece.count <= piece.length
        assert (piece.offset - start) % unit == 0
        assert piece.length % unit == 0 or piece.offset + piece.length == region.end
        assert layout.place(piece.offset + piece.first, piece.count) == piece.at
        covered[piece.at : piece.at + piece.count] += 1
    assert covered.max(initial=0) <= 1
    for plane in planes:
        place = layout.place(plane.offset, plane.length)
        assert place is not None and (place - (plane.offset - start)) % device_stream.PAGE == 0
        assert covered[place : place + plane.length].all()
    for before, after in zip(layout.chunks, layout.chunks[1:], strict=False):
        assert after.start - before.end >= device_stream._GAP


@pytest.mark.parametrize("ring", [(0, 1, LEAF), (2, 1, LEAF), (1, 1, 4096), (1, 1, LEAF + 4096)])
def test_rings_that_cannot_work_are_refused(ring):
    with pytest.raises(ValueError, match="whole leaves"):
        device_stream.Ring(*ring)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs direct reads")
def test_what_is_not_in_memory_is_read_around_the_page_cache(path):
    file = aibit.open(path)
    bulk, expected = file.info("t0").planes[0].offset, path.read_bytes()
    source = device_stream.DirectReader(file.storage, bulk)
    memory = np.frombuffer(mmap.mmap(-1, LEAF), np.uint8)

    def read(offset: int, length: int) -> bool:
        direct = source.read(offset, length, memory)
        assert memory[:length].tobytes() == expected[offset : offset + length]
        return direct

    assert not read(bulk, LEAF)  # it is in memory
    forget(path)
    if source._direct is None or device_stream.is_resident(source._probe, bulk, LEAF):
        pytest.skip("this file system has no direct reads, or always keeps its files in memory")
    tail = len(expected) // device_stream.PAGE * device_stream.PAGE  # what begins there ends in the middle of a page
    for offset, length, direct in [
        (bulk, LEAF, True), (bulk + LEAF, 777, True), (tail, len(expected) - tail, True),
        (bulk - device_stream.PAGE, device_stream.PAGE, False),  # will be looked at on the host
        (bulk + 64, device_stream.PAGE, False),  # does not begin at a page
    ]:  # fmt: skip
        for _ in range(20):  # a page that is just being read, as one that was asked for may be, is not forgotten
            forget(path)
            if read(offset, length) == direct:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"{length} bytes at {offset}: expected direct={direct}")
    source.close()


@pytest.mark.parametrize("step", [1, 1000, 70000])
def test_short_reads_are_continued(step, path, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, *rest: preadv(file, [memoryview(buffers[0])[:step]], *rest))
    file = aibit.open(path)
    planes = file.info("t7").planes if step == 1 else every(file)
    assert_equal(Arena(file, planes, CPU, SMALL), file, list(planes))


def test_a_direct_read_that_the_file_system_refuses_goes_the_other_way(path, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(device_stream, "is_resident", lambda *_: False)
    file = aibit.open(path)
    source = device_stream.DirectReader(file.storage)

    def refuse(descriptor, buffers, *rest):
        if descriptor == source._direct:
            raise OSError(22, "Invalid argument")
        return preadv(descriptor, buffers, *rest)

    monkeypatch.setattr(os, "preadv", refuse)
    memory = np.zeros(LEAF, np.uint8)
    start = file.data.start
    assert not source.read(start, LEAF, memory)
    assert memory.tobytes() == path.read_bytes()[start : start + LEAF]
    source.close()


@pytest.mark.parametrize("where", [0, 1, -1])
def test_damage_is_found_on_the_way_and_named(where, path, tmp_path):
    data = bytearray(path.read_bytes())
    file = aibit.open(path)
    plane = [p for name in ("t0", "t4") for p in file.info(name).planes][where]
    name = "t4" if where == -1 else "t0"
    data[plane.offset + plane.length // 2] ^= 1
    (tmp_path / "bad.aibit").write_bytes(data)
    bad = aibit.open(tmp_path / "bad.aibit", verify="touched")
    with pytest.raises(FormatError) as found:
        Arena(bad, every(bad), CPU, SMALL)
    first = bad.data.start + (plane.offset + plane.length // 2 - bad.data.start) // LEAF * LEAF
    assert found.value.code == "AIB-E602" and found.value.offset == first
    assert found.value.path == str(tmp_path / "bad.aibit") and (found.value.tensor == name or where != 0)
    assert not threads_left()
    unchecked = aibit.open(tmp_path / "bad.aibit")
    assert_equal(Arena(unchecked, every(unchecked), CPU, SMALL), unchecked, every(unchecked))


def test_leaves_that_were_checked_on_the_way_are_not_hashed_again(path, monkeypatch):
    file = aibit.open(path, verify="touched")
    Arena(file, every(file), CPU, SMALL)
    monkeypatch.setattr("aibit_format.container.checksums.leaves", lambda *_, **__: pytest.fail("hashed again"))
    for name in file:
        file.planes(name)


def test_a_file_that_is_cut_meanwhile_ends_in_an_error_and_not_in_waiting(path, tmp_path, monkeypatch):
    copy = tmp_path / "m.aibit"
    copy.write_bytes(path.read_bytes())
    file = aibit.open(copy)
    read = device_stream.DirectReader.read

    def cut(self, offset, length, memory):
        os.truncate(copy, file.data.start + LEAF)
        return read(self, offset, length, memory)

    monkeypatch.setattr(device_stream.DirectReader, "read", cut)
    with pytest.raises(FormatError, match="ends earlier") as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E802" and not threads_left()


def test_a_file_that_is_changed_meanwhile_is_refused(path, tmp_path, monkeypatch):
    copy = tmp_path / "m.aibit"
    copy.write_bytes(path.read_bytes())
    file = aibit.open(copy)
    read = device_stream.DirectReader.read

    def change(self, offset, length, memory):
        os.utime(copy, ns=(1, 1))
        return read(self, offset, length, memory)

    monkeypatch.setattr(device_stream.DirectReader, "read", change)
    with pytest.raises(FormatError) as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E802"


def test_an_error_of_the_disk_names_the_file(path, monkeypatch):
    file = aibit.open(path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError, match="Input/output error") as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E803" and found.value.path == str(path) and not threads_left()


@pytest.mark.parametrize("method", ["slot", "wait", "send", "finish"])
def test_errors_of_the_link_come_out_and_threads_end(method, path, monkeypatch):
    class Broken(Late):
        pass

    def fail(*_):
        raise RuntimeError("the bus is gone")

    monkeypatch.setattr(LateSlot if method in ("wait", "send") else Broken, method, fail)
    monkeypatch.setitem(arena.LINKS, "cpu", Broken)
    file = aibit.open(path)
    with pytest.raises(RuntimeError, match="the bus is gone"):
        Arena(file, every(file), CPU, SMALL)
    assert not threads_left()


def test_what_is_under_way_arrives_before_an_error_comes_out(path, monkeypatch):
    """The device may still be reading a slot: it must not be let go before that."""
    finished = []
    monkeypatch.setattr(Late, "finish", lambda self: finished.append(True))
    monkeypatch.setattr(device_stream.DirectReader, "read", lambda *_: 1 / 0)
    file = aibit.open(path)
    with pytest.raises(ZeroDivisionError):
        Arena(file, every(file), CPU, SMALL)
    assert finished == [True]


def test_files_in_memory_and_of_other_systems_take_the_same_way(path, monkeypatch):
    data = path.read_bytes()
    file = aibit.open(data, verify="touched")
    assert_equal(Arena(file, every(file), CPU, SMALL), file, every(file))
    monkeypatch.delattr(os, "preadv")
    mapped = aibit.open(path)
    assert isinstance(mapped.storage, Mapped)
    assert_equal(Arena(mapped, every(mapped), CPU, SMALL), mapped, every(mapped))
