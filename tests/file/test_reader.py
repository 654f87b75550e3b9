"""The reader: what each level of verification sees, and that planes are views of the mapping."""

import gc
import os

import numpy as np
import pytest

from aibit_format.container import layout
from aibit_format.container.tables import Plane, TensorInfo
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import FormatError
from aibit_format.file.reader import LEVELS, File, Verified, open
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make
from aibit_format.schemes.int8 import Int8
from aibit_format.schemes.plain import Plain
from tests.support.damaged_files import GOOD
from tests.support.damaged_files import path as path
from tools.fixtures import file_builder

LEAF = layout.LEAF


def big():
    """Three planes of one leaf each, and a document of two leaves; no small planes."""
    content = {
        Tensor(name, (LEAF,), "u8", make("u8")): {"values": np.full(LEAF, i, "u1")} for i, name in enumerate("abc")
    }
    return file_builder.written(content, {}, {"long.bin": bytes(2 * LEAF), "short.txt": b"short"})


def offset_of(data, tensor):
    return File(data).info(tensor).planes[0].offset


def flipped(data, at):
    return file_builder.flip(at)(data)


# Levels


def test_structure_does_not_look_at_planes():
    data = big()
    file = File(flipped(data, offset_of(data, "b") + 5), "structure")
    assert file.planes("b")["values"][5] == 0


def test_touched_refuses_the_damaged_plane_and_no_other():
    data = big()
    at = offset_of(data, "b")
    file = File(flipped(data, at + 5), "touched")
    for name in "ac":
        assert file.planes(name)["values"].shape == (LEAF,)
    for _ in range(2):
        with pytest.raises(FormatError) as caught:
            file.planes("b")
        assert (caught.value.code, caught.value.tensor, caught.value.offset) == ("AIB-E602", "b", at)
    with pytest.raises(FormatError):
        file.dequantize("b")


def test_touched_refuses_an_alias_of_the_damaged_plane(path):
    data = flipped(GOOD, offset_of(GOOD, "first"))
    with pytest.raises(FormatError) as caught:
        File(data, "touched").planes("tied")
    assert caught.value.code == "AIB-E602"


def test_full_refuses_to_open_and_names_tensor_and_offset(tmp_path):
    data = big()
    at = offset_of(data, "c")
    path = tmp_path / "m.aibit"
    path.write_bytes(flipped(data, at + LEAF - 1))
    with pytest.raises(FormatError) as caught:
        File(str(path), "full")
    error = caught.value
    assert (error.code, error.tensor, error.offset, error.path) == ("AIB-E602", "c", at, str(path))
    assert error.expected != error.found
    assert all(text in str(error) for text in (str(path), "'c'", str(at), "AIB-E602"))


def test_full_reports_every_damaged_leaf():
    data = big()
    bad = flipped(flipped(data, offset_of(data, "a")), offset_of(data, "c"))
    with pytest.raises(FormatError) as caught:
        File(bad, "full")
    assert [problem.tensor for problem in caught.value.problems] == ["a", "c"]


@pytest.mark.parametrize("level", ["structure", "touched"])
def test_a_damaged_document_is_refused_when_it_is_read(level):
    data = big()
    start = int(file_builder.table(data, "document")["offset"][0])
    file = File(flipped(data, start + LEAF + 1), level)
    for _ in range(2):
        with pytest.raises(FormatError) as caught:
            file.documents["long.bin"]
        assert (caught.value.code, caught.value.offset) == ("AIB-E602", start + LEAF)
        assert "long.bin" in str(caught.value)
    # The third leaf holds the other document, and the planes have leaves of their own.
    assert bytes(file.documents["short.txt"]) == b"short"
    assert file.planes("a")["values"].size == LEAF


def test_a_damaged_document_names_itself_in_a_full_verification():
    start = int(file_builder.table(GOOD, "document")["offset"][0])
    with pytest.raises(FormatError, match=r"config\.json"):
        File(flipped(GOOD, start), "full")


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(lambda: int(file_builder.table(GOOD, "document")[0]["offset"]) + 8, id="after a document"),
        pytest.param(lambda: file_builder.front_end(GOOD) + 64 + 320, id="after the documents"),
        pytest.param(lambda: offset_of(GOOD, "norm") + 16, id="after a small plane"),
        pytest.param(lambda: offset_of(GOOD, "first") + 5120, id="after a bulk plane"),
    ],
)
def test_padding_that_is_not_zero_is_refused_by_a_full_verification_alone(at):
    bad = file_builder.flip(at(), leaves=True)(GOOD)
    assert len(File(bad, "touched").planes("first")) == 1
    with pytest.raises(FormatError) as caught:
        File(bad, "full")
    assert caught.value.code == "AIB-E603"


def test_an_unknown_level_is_a_value_error():
    with pytest.raises(ValueError, match="structure"):
        File(GOOD, "everything")


def test_what_was_verified_is_said(path):
    root = GOOD[112:128].hex()
    front = file_builder.front_end(GOOD)
    for level in ("structure", "touched"):
        assert File(path, level).verified() == Verified(level, 10, 10, 3, 0, front, root)
    everything = Verified("full", 10, 10, 3, 2, len(GOOD), root)
    assert File(path, "full").verified() == everything
    assert File(path).verify() == everything
    assert File(path).root == root


@pytest.mark.parametrize("jobs", [1, 4])
def test_verification_is_the_same_whatever_the_threads(jobs):
    assert File(big()).verify(jobs) == File(big(), "full").verified()


# Views


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("level", LEVELS)
def test_planes_are_read_only_views_inside_the_mapping(path, level):
    file = File(path, level)
    base, size = address(file.storage.map), file.storage.size
    for name in file:
        info = file.info(name)
        for plane in info.planes:
            view = file.planes(name)[plane.role]
            assert view.shape == plane.shape
            assert view.dtype == DTYPES[plane.dtype].numpy
            assert address(view) == base + plane.offset or not view.size
            assert plane.offset + view.nbytes <= size
            assert not view.flags.writeable
            with pytest.raises(ValueError):
                view[...] = 0
            with pytest.raises(ValueError):
                view.flags.writeable = True


def test_documents_are_read_only_views(path):
    file = File(path)
    assert dict(file.documents) == file_builder.DOCUMENTS
    assert list(file.documents) == sorted(file_builder.DOCUMENTS)
    assert len(file.documents) == 3
    document = file.documents["notes/read.md"]
    assert document.readonly
    with pytest.raises(TypeError):
        document[0] = 0
    with pytest.raises(KeyError):
        file.documents["nope"]
    assert "nope" not in file.documents


def test_views_outlive_the_file(path):
    with File(path) as file:
        planes, document = file.planes("quant"), file.documents["config.json"]
    expected = file_builder.planes_of(*file_builder.TENSORS[1])
    del file
    gc.collect()
    os.unlink(path)
    for role, array in expected.items():
        assert np.array_equal(planes[role], array)
    assert bytes(document) == file_builder.DOCUMENTS["config.json"]


@pytest.mark.parametrize("call", [
    lambda file: file.planes("first"),
    lambda file: file.dequantize("first"),
    lambda file: file.documents["config.json"],
    lambda file: file.verify(),
    lambda file: file.root,
], ids=["planes", "dequantize", "documents", "verify", "root"])  # fmt: skip
@pytest.mark.parametrize("used", [False, True])
def test_contents_of_a_closed_file_are_refused(path, call, used):
    file = File(path)
    if used:
        call(file)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        call(file)


def test_what_a_closed_file_says_of_itself_is_still_there(path):
    with File(path) as file:
        pass
    assert file.keys() == file_builder.NAMES
    assert file.info("first").shape == (40, 64)
    assert file.metadata["test.number"] == 1.5


def test_bytes_open_like_files(path):
    mapped = File(path)
    for held in (GOOD, bytearray(GOOD), memoryview(GOOD), memoryview(b"x" + GOOD)[1:]):
        file = open(held, "full")
        assert file.path is None
        for name in mapped:
            assert file.info(name) == mapped.info(name)
            for role, array in mapped.planes(name).items():
                other = file.planes(name)[role]
                assert other.tobytes() == array.tobytes()
                assert not other.flags.writeable


def test_a_path_may_be_a_path_object(path, tmp_path):
    assert File(tmp_path / "m.aibit").path == path


def test_a_missing_file_is_a_format_error_that_names_it(tmp_path):
    with pytest.raises(FormatError, match="nope") as caught:
        File(tmp_path / "nope")
    assert caught.value.code == "AIB-E803"


# Tensors


def test_names_come_in_file_order(path):
    file = File(path)
    assert file.keys() == list(file) == file_builder.NAMES
    assert len(file) == len(file_builder.NAMES)
    assert "first" in file
    assert "nope" not in file
    assert 3 not in file


@pytest.mark.parametrize("call", [File.info, File.planes, File.dequantize])
def test_an_unknown_name_is_a_key_error(path, call):
    with pytest.raises(KeyError, match="nope"):
        call(File(path), "nope")


def test_an_alias_shares_the_memory_of_its_target(path):
    file = File(path)
    alias, target = file.planes("tied")["values"], file.planes("first")["values"]
    assert np.shares_memory(alias, target)
    assert address(alias) == address(target)
    assert file.info("tied").alias_of == "first"
    assert file.info("first").alias_of is None
    assert file.info("tied").planes == file.info("first").planes


@pytest.mark.parametrize("tensor", file_builder.TENSORS, ids=file_builder.NAMES)
def test_dequantized_values_are_the_formula_of_the_scheme(path, tensor):
    name, scheme, dtype, shape, alias = tensor
    file = File(path)
    info = file.info(name)
    assert (info.name, info.scheme.name, info.dtype, info.shape) == (name, scheme, dtype, shape)
    source = next(row for row in file_builder.TENSORS if row[0] == (alias or name))
    planes = file_builder.planes_of(*source)
    if scheme == "int8":
        expected = planes["codes"].astype("f4") * planes["row_absmax"][:, None] * np.float32(1 / 127)
    else:
        expected = to_float32(planes["values"], dtype)
    found = file.dequantize(name)
    assert found.dtype == np.float32
    assert found.shape == shape
    assert np.array_equal(found, expected)


def test_dequantized_values_are_a_copy(path):
    file = File(path)
    file.dequantize("quant")[:] = 0
    file.dequantize("scalar")[...] = 7
    file.verify()


def test_nbytes_are_those_of_the_planes(path):
    file = File(path)
    assert file.info("quant").nbytes == 5120 + 320
    assert file.info("tied").nbytes == 5120
    assert file.info("nothing").nbytes == 0
    assert file.info("scalar").nbytes == 4


def test_opening_thousands_of_tensors_makes_nothing_for_each(monkeypatch):
    kinds = [("int8", "f32", (2, 4)), ("f32", "f32", (3,))]
    tensors = [(f"layer.{i}.weight", *kinds[i % 2], None) for i in range(5000)]
    data = file_builder.good(tensors, {}, {})
    asked = []
    for scheme in (Int8, Plain):

        def counted(self, shape, dtype, planes=scheme.planes):
            asked.append(shape)
            return planes(self, shape, dtype)

        monkeypatch.setattr(scheme, "planes", counted)
    gc.collect()
    before = sum(isinstance(thing, (TensorInfo, Plane)) for thing in gc.get_objects())
    file = File(data)
    assert sum(isinstance(thing, (TensorInfo, Plane)) for thing in gc.get_objects()) == before
    assert sorted(asked) == [(2, 4), (3,)]
    assert len(file) == 5000
    assert file.info("layer.4999.weight").shape == (3,)


def test_a_tensor_is_described_once(monkeypatch):
    file = File(file_builder.good([(f"{i}", "f32", "f32", (3,), None) for i in range(5)], {}, {}))
    first = file.info("0")
    assert file.info("0") is first
    monkeypatch.setattr("aibit_format.container.tables._MOST_KEPT", 3)
    for name in file:
        assert file.info(name).name == name and len(file.tables._made) <= 3
    assert file.info("0") == first
    with pytest.raises(KeyError):
        file.info("none")


def test_a_file_says_what_it_is(path):
    assert repr(File(path)) == f"<aibit file {path}: 10 tensors, {len(GOOD)} bytes>"
    assert repr(File(GOOD)).startswith("<aibit file in memory:")
