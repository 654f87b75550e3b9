"""GGUF files in parts: opened by the first, every part checked."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.gguf.file import NUMBERS, GGUFFile
from aibit_format.formats.sources import open_source
from tests.support.gguf_models import all_types, finish


def part(path, number: int, count: int, tensors: dict[str, np.ndarray], **stated) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", stated.get("no", number))
    writer.add_uint16("split.count", stated.get("count", count))
    writer.add_int32("split.tensors.count", stated.get("tensors", 4))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    finish(writer)


@pytest.fixture
def parts(tmp_path):
    """Three parts of four tensors, the second of them a whole row of another."""
    arrays = {f"blk.{i}.w": np.full((2, 32), i, np.float32) for i in range(4)}
    names = [f"m-{i + 1:05}-of-00003.gguf" for i in range(3)]
    for i, name in enumerate(names):
        held = {key: value for j, (key, value) in enumerate(arrays.items()) if min(j, 2) == i}
        part(tmp_path / name, i, 3, held)
    return tmp_path, names, arrays


def test_parts_are_read_as_one_file(parts):
    folder, names, arrays = parts
    source = open_source(folder / names[0])
    assert list(source.tensors) == list(arrays) and [file.name for file in source.files] == names
    aibit.convert(source, folder / "m.aibit")
    with aibit.open(folder / "m.aibit", verify="full") as file:
        assert all(np.array_equal(file.dequantize(name), array) for name, array in arrays.items())
        assert list(file.metadata["source.files"]) == names


def test_a_model_in_two_parts_is_the_model_in_one(tmp_path):
    all_types(tmp_path / "whole.gguf")
    whole = GGUFFile(str(tmp_path / "whole.gguf"))
    for i in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{i + 1}-of-00002.gguf", "llama")
        for key, value in whole.metadata.items() if i == 0 else ():
            if key.startswith("llama."):
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        for key, value in (("no", i), ("count", 2)):
            writer.add_uint16(f"split.{key}", value)
        for tensor in whole.tensors[i::2]:
            data = whole.read(tensor).view(np.int8)  # the shape is that of elements from any dtype but u8
            writer.add_tensor(tensor.name, data, raw_shape=tensor.shape, raw_dtype=NUMBERS[tensor.type])
        finish(writer)
    for name in ("whole", "m-00001-of-00002"):
        aibit.convert(tmp_path / f"{name}.gguf", tmp_path / f"{name}.aibit")
    with aibit.open(tmp_path / "whole.aibit") as one, aibit.open(tmp_path / "m-00001-of-00002.aibit") as two:
        assert list(one) == list(two)
        for name in one:
            assert all(np.array_equal(plane, two.planes(name)[role]) for role, plane in one.planes(name).items())


def test_another_part_than_the_first_names_the_first(parts):
    folder, names, _ = parts
    with pytest.raises(SourceError, match=r"part 2 of 3: open the first part, m-00001-of-00003\.gguf"):
        open_source(folder / names[1])


def test_parts_that_are_missing_or_of_others_are_named(parts):
    folder, names, arrays = parts
    (folder / names[2]).rename(folder / "away.gguf")
    with pytest.raises(SourceError, match=rf"part 3 of 3 is missing: .*{names[2]}"):
        open_source(folder / names[0])
    shutil.copy(folder / names[1], folder / names[2])
    with pytest.raises(SourceError, match=rf"{names[2]}: split\.no and split\.count are \(1, 3\), expected \(2, 3\)"):
        open_source(folder / names[0])
    part(folder / names[2], 2, 3, dict(list(arrays.items())[1:]))
    with pytest.raises(SourceError, match=rf"{names[2]}: tensor 'blk\.1\.w' is in .*{names[1]} too"):
        open_source(folder / names[0])
    part(folder / names[2], 2, 3, {"blk.3.w": arrays["blk.3.w"]})
    with pytest.raises(SourceError, match=r"split\.tensors\.count is 4, the parts have 3 tensors"):
        open_source(folder / names[0])
    (folder / names[2]).write_bytes((folder / "away.gguf").read_bytes()[:-100])
    with pytest.raises(SourceError, match=rf"{names[2]}: .*truncated"):
        open_source(folder / names[0])


@pytest.mark.parametrize("count", [0, 70000])
def test_numbers_of_parts_that_lie_are_refused(count, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint32("split.count", count)
    finish(writer)
    with pytest.raises(SourceError, match=f"{count}"):
        open_source(tmp_path / "m.gguf")


def test_a_first_part_of_another_name_is_refused(parts):
    folder, names, _ = parts
    (folder / names[0]).rename(folder / "m.gguf")
    with pytest.raises(SourceError, match="the first of 3 parts, and not called NAME-00001-of-00003"):
        open_source(folder / "m.gguf")
