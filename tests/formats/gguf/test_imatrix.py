"""llama.cpp's imatrix files: both forms, held to gguf-py and to bytes written by hand."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf import imatrix
from aibit_format.formats.gguf.imatrix import IMatrix, Sums

MATRIX = IMatrix(
    {
        "blk.0.attn_q.weight": Sums(np.array([[2.0, 4.0, 6.0]]), np.array([4])),
        "blk.0.ffn_down_exps.weight": Sums(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([2, 0])),
    },
    ("a.txt", "b.txt"), 3, 2,
)  # fmt: skip


def same(found, expected):
    assert found.entries.keys() == expected.entries.keys()
    for name, sums in expected.entries.items():
        np.testing.assert_allclose(found.entries[name].sum2, sums.sum2, rtol=1e-7)
        assert found.entries[name].counts.tolist() == sums.counts.tolist()


def written(tmp_path, data, name="x.gguf"):
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def test_gguf_py_reads_what_is_written(tmp_path):
    path = written(tmp_path, imatrix.encode(MATRIX))
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix" and fields["imatrix.datasets"] == ["a.txt", "b.txt"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (3, 2)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.attn_q.weight.in_sum2"].data.tolist() == [[2.0, 4.0, 6.0]]
    assert tensors["blk.0.ffn_down_exps.weight.in_sum2"].data.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert tensors["blk.0.ffn_down_exps.weight.counts"].data.tolist() == [[2.0], [0.0]]
    assert tensors["blk.0.ffn_down_exps.weight.counts"].shape.tolist() == [1, 2]  # innermost first, as llama.cpp has it
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_what_gguf_py_writes_is_read(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 2)
    for name, sums in MATRIX.entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums.sum2.astype("f"))
        writer.add_tensor(f"{name}.counts", sums.counts.astype("f")[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = imatrix.read(str(tmp_path / "x.gguf"))
    same(found, MATRIX)
    assert (list(found.datasets), found.chunks, found.chunk_size) == (["a.txt"], 3, 2)


def test_the_old_form_byte_by_byte(tmp_path):
    # llama.cpp's save_imatrix_legacy: means times calls, calls = ceil(largest count / chunk size).
    name, experts = b"blk.0.attn_q.weight", b"blk.0.ffn_down_exps.weight"
    expected = struct.pack("<i", 2)
    expected += struct.pack("<i", len(name)) + name + struct.pack("<ii3f", 2, 3, 1.0, 2.0, 3.0)
    expected += struct.pack("<i", len(experts)) + experts + struct.pack("<ii4f", 1, 4, 0.5, 1.0, 1.0, 1.0)
    expected += struct.pack("<ii", 3, 12) + b"a.txt, b.txt"
    assert imatrix.encode(MATRIX, old=True) == expected
    found = imatrix.read(written(tmp_path, expected, "x.dat"))
    query = found.entries["blk.0.attn_q.weight"]
    assert (query.sum2 / query.counts).tolist() == [[0.5, 1.0, 1.5]] and found.chunks == 3
    assert imatrix.read(written(tmp_path, expected[:-20], "y.dat")).entries.keys() == MATRIX.entries.keys()


@pytest.mark.parametrize("cut", [3, 10, 30, 50, 80, 110])
@pytest.mark.parametrize("old", [True, False])
def test_damaged_files_are_refused(cut, old, tmp_path):
    data = imatrix.encode(MATRIX, old)
    with pytest.raises(SourceError):
        imatrix.read(written(tmp_path, data[:cut]))


def test_values_that_no_sums_have_are_refused(tmp_path):
    for value in (np.nan, -1.0, np.inf):
        matrix = IMatrix({"a": Sums(np.array([[1.0, value]]), np.array([1]))})
        for old in (True, False):
            with pytest.raises(SourceError, match="negative or not finite"):
                imatrix.read(written(tmp_path, imatrix.encode(matrix, old)))


@pytest.mark.parametrize("kind", [[1, 2], 7])
def test_another_type_is_no_imatrix_whatever_it_is(kind, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "imatrix")
    writer.add_key_value(
        "general.type", kind, gguf.GGUFValueType.ARRAY if isinstance(kind, list) else gguf.GGUFValueType.UINT32
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SourceError, match="'imatrix' is needed"):
        imatrix.read(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize("chunks", [1 << 40, -1])
def test_numbers_of_chunks_that_no_run_has_count_as_unknown(chunks, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_key_value("imatrix.chunk_count", chunks, gguf.GGUFValueType.INT64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert imatrix.read(str(tmp_path / "x.gguf")).chunks == 0


def test_other_files_are_no_imatrix(tmp_path):
    with pytest.raises(SourceError, match="the number of entries"):
        imatrix.read(written(tmp_path, b"\xff" * 100))
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_type("model")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SourceError, match="'imatrix' is needed"):
        imatrix.read(str(tmp_path / "m.gguf"))
