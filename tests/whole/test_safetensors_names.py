"""``safe_open``, ``load_file`` and ``save_file`` as users of safetensors call them."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch

import aibit_format.numpy as of_numpy
import aibit_format.torch as of_torch
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import FormatError, SchemeError
from aibit_format.file import sharded_reader
from aibit_format.file.reader import File
from aibit_format.schemes.int8 import Int8
from aibit_format.schemes.opaque import Opaque

FIXTURES = pathlib.Path(__file__).resolve().parent
while not (FIXTURES / "fixtures").is_dir():
    FIXTURES = FIXTURES.parent
FIXTURES /= "fixtures/container"
FILES = [path.name for path in sorted(FIXTURES.glob("*.aibit")) if not path.name.startswith("sharded-0000")]
INDICES = [
    0, -1, slice(None), slice(1, 3), slice(0, 0), slice(5, 1), slice(None, None, 2), slice(None, None, -1),
    slice(3, None, -2), ..., (), (slice(1, 3), ...), (..., slice(0, 2)), (1, slice(None, None, 3)), (slice(2), -1),
]  # fmt: skip
SIDES = [of_numpy, of_torch]


def tensors(side):
    found = {"a": np.arange(24, dtype=np.float32).reshape(4, 6)}
    return {name: torch.from_numpy(value) for name, value in found.items()} if side is of_torch else found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "pt"},
        {"format": "pt", "modelspec.title": "A", "Any Key": "ü \x01", "": "", "author.name": "x"},
        {"safetensors.metadata": "mine"},
        {"safetensors.metadata": '{"format": "pt"}', "b": "2"},
        {"author.year": 7, "author.name": "x"},
        {},
    ],
)
def test_metadata_come_back(side, metadata, tmp_path):
    side.save_file(tensors(side), tmp_path / "m", metadata=metadata)
    with side.safe_open(tmp_path / "m") as file:
        assert file.metadata() == metadata
    File(tmp_path / "m", "full")
    side.save_file(tensors(side), tmp_path / "n", metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "m").read_bytes() == (tmp_path / "n").read_bytes()


def test_metadata_without_a_namespace_are_strings(tmp_path):
    with pytest.raises(FormatError, match="AIB-E302"):
        of_numpy.save_file({}, tmp_path / "m", {"format": 1})


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', "{", "[" * 100_000, "null"])
def test_what_another_tool_wrote_there_stays_as_it_is(text, tmp_path):
    from aibit_format.file.writer import write

    write(tmp_path / "m", {}, {of_numpy.PAIRS: text})
    assert of_numpy.safe_open(tmp_path / "m").metadata() == {of_numpy.PAIRS: text}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("path", FILES)
def test_slices_are_those_of_the_tensor(side, path):
    with side.safe_open(FIXTURES / path) as file:
        for name in file.keys():  # noqa: SIM118 - safetensors' method
            info = file._file.info(name)
            if isinstance(info.scheme, Opaque):
                with pytest.raises(FormatError, match=r"AIB-E40[46]"):
                    file.get_tensor(name)
                continue
            if side is of_torch and DTYPES[info.dtype].is_packed:
                with pytest.raises(SchemeError, match=f"tensor '{name}'"):
                    file.get_slice(name)
                continue
            whole, part = file.get_tensor(name), file.get_slice(name)
            whole = np.asarray(whole.float() if side is of_torch and whole.dtype.is_floating_point else whole)
            assert part.get_shape() == list(whole.shape)
            for index in INDICES:
                try:
                    wanted = whole[index]
                except IndexError:
                    with pytest.raises(IndexError):
                        part[index]
                    continue
                found = part[index]
                if side is of_torch:
                    assert found.dtype == file.get_tensor(name).dtype
                    found = found.float() if found.dtype.is_floating_point else found
                assert np.array_equal(np.asarray(found), wanted, equal_nan=wanted.dtype.kind == "f"), (name, index)


def test_dtypes_have_safetensors_names(tmp_path):
    of_torch.save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2) > 0}, tmp_path / "m")
    for side in SIDES:
        with side.safe_open(tmp_path / "m") as file:
            assert [file.get_slice(name).get_dtype() for name in "ab"] == ["BF16", "BOOL"]


def test_four_bit_floats_of_torch_come_back(tmp_path):
    codes = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4) * 10
    of_torch.save_file({"a": codes.view(torch.float4_e2m1fn_x2), "b": torch.ones(2)}, tmp_path / "m")
    assert of_torch.load_file(tmp_path / "m")["a"].view(torch.uint8).equal(codes)
    low, high = (to_float32(part.numpy(), "f4_e2m1") for part in (codes & 15, codes >> 4))
    with of_numpy.safe_open(tmp_path / "m") as file:
        assert file.get_slice("a").get_dtype() == "F4" and file.get_slice("a").get_shape() == [2, 3, 8]
        assert np.array_equal(file.get_tensor("a"), np.stack([low, high], -1).reshape(2, 3, 8))
        assert np.array_equal(file.get_slice("a")[1, :, 3:6], file.get_tensor("a")[1, :, 3:6])


def test_a_tensor_that_torch_cannot_hold_is_named():
    with of_torch.safe_open(FIXTURES / "packed-dtypes.aibit") as file:
        for name in ("u4/3x7", "f4_e2m1/3x7", "i2/", "f6_e3m2/2x8"):
            with pytest.raises(SchemeError, match=f"tensor '{name}': torch has no dtype"):
                file.get_tensor(name)
        assert file.get_tensor("f4_e2m1/2x8").shape == (2, 4)


@pytest.mark.parametrize("index", [[0, 1], None, True, np.array([0]), 1.0, "a"])
def test_other_indices_are_refused(index, tmp_path):
    of_numpy.save_file(tensors(of_numpy), tmp_path / "m")
    with of_numpy.safe_open(tmp_path / "m") as file, pytest.raises(TypeError, match="no integer, slice or ellipsis"):
        file.get_slice("a")[index]


def test_a_slice_reads_only_its_rows(tmp_path, monkeypatch):
    seen = []
    view, decode = File.view, Int8.decode_rows
    monkeypatch.setattr(File, "view", lambda self, plane: seen.append(plane.length) or view(self, plane))
    of_numpy.save_file({"a": np.zeros((100, 10), np.float32)}, tmp_path / "m")
    with of_numpy.safe_open(tmp_path / "m") as file:
        assert file.get_slice("a")[7:9].shape == (2, 10) and file.get_slice("a")[5, :3].shape == (3,)
    assert seen == [80, 40]

    rows = []

    def decoded(self, planes, shape, dtype, part):
        rows.append(len(np.arange(shape[0])[part]))
        return decode(self, planes, shape, dtype, part)

    monkeypatch.setattr(Int8, "decode_rows", decoded)
    with of_numpy.safe_open(FIXTURES / "scheme-int8.aibit") as file:
        name = next(name for name in file.keys() if isinstance(file._file.info(name).scheme, Int8))  # noqa: SIM118
        file.get_slice(name)[1:2], file.get_slice(name)[0]
    assert rows == [1, 1]


@pytest.mark.parametrize("side", SIDES)
def test_load_file_closes_its_file_and_arrays_live_on(side, tmp_path, monkeypatch):
    opened = []
    really = sharded_reader.open
    monkeypatch.setattr(sharded_reader, "open", lambda *args: opened.append(really(*args)) or opened[-1])
    side.save_file(tensors(side), tmp_path / "m")
    found = side.load_file(tmp_path / "m")
    assert opened[0].storage._file.closed
    assert np.array_equal(np.asarray(found["a"]), np.arange(24, dtype=np.float32).reshape(4, 6))
