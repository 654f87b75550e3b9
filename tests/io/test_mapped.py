"""Mapped files."""

import os

import pytest

from aibit_format.container import layout
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
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    assert int(python(program, path, SPARSE)) < 64 << 20
