"""Mapped files."""

import os

import pytest

from aibit_format.container import layout
from aibit_format.errors import FormatError
from aibit_format.interop import to_torch
from aibit_format.io import mapped
from tests.support.faults import python
from tests.support.rows import small_pages as small_pages
from tools.fixtures import file_builder

SPARSE = 64 << 30  # bytes: more than this machine's memory, or most


def test_a_mapping_larger_than_memory(tmp_path):
    path = tmp_path / "m.aibit"
    small = file_builder.good([("huge", "f16", "f16", (64, 64), None), ("small", "f32", "f32", (3,), None)], {}, {})
    lengths, roles = [SPARSE, 12], file_builder.table(small, "plane")["role"].tolist()
    _, _, start, _, end = file_builder.place(0, [], lengths, roles, 4096)
    leaves = -(-(end - start) // layout.LEAF)
    data = bytearray(file_builder.rebuilt(leaves=(leaves, bytes(8 * leaves)))(small))
    front = file_builder.front_end(data)
    *_, offsets, end = file_builder.place(front, [], lengths, roles, 4096)
    file_builder.table(data, "tensor")["shape"][0, :2] = SPARSE // 2048, 1024
    file_builder.table(data, "plane")["length"], file_builder.table(data, "plane")["offset"] = lengths, offsets
    file_builder.table(data, "header")["file_size"] = end
    path.write_bytes(file_builder.reseal(data)[:front])
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
            import torch
            from aibit_format.interop import to_torch
            mine = to_torch(file.writable().planes("huge")["values"], "f16")
            assert mine.nbytes == plane.nbytes
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            mine[-1] += 1  # one page of 64 GiB is copied
            assert mine[-1].all() and not mine[-5].any() and not plane[-1].any()
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    assert int(python(program, path, SPARSE)) < 64 << 20


def writable_array(storage):
    """Return all bytes of a storage as an array that may be written to, over the memory that tensors get."""
    return to_torch(storage.writable().read_at(0, storage.size), "u8").numpy()


HELD = {"file": mapped.Mapped, "bytes": lambda path: mapped.InMemory(path.read_bytes())}


@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_writing_changes_neither_the_file_nor_what_others_have_of_it(hold, tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 64)
    storage = hold(path)
    first, second = writable_array(storage), writable_array(storage)
    first[:5000] = 7
    assert (first[:5000] == 7).all() and bytes(first[5000:]) == path.read_bytes()[5000:]
    for others in (second, storage.read_at(0, storage.size)):
        assert bytes(others) == bytes(range(256)) * 64
    assert path.read_bytes() == bytes(range(256)) * 64
    assert not storage.writable().read_at(0, 9).flags.writeable  # numpy's users get what they always got
    storage.close()
    assert (first[:5000] == 7).all()


def test_memory_that_the_system_does_not_promise_is_an_error(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    path = tmp_path / "bytes"
    path.write_bytes(b"some")
    storage = mapped.Mapped(path)
    monkeypatch.setattr(mapped.mmap, "mmap", refuses)
    with pytest.raises(FormatError, match=r"4 bytes cannot be mapped.*Cannot allocate memory") as caught:
        storage.writable()
    assert caught.value.code == "AIB-E803"
