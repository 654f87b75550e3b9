"""Models in formats that are not read."""

from __future__ import annotations

import os

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.foreign import FOREIGN, recognize

ENDINGS = [(row, ending) for row in FOREIGN for ending in row.endings]
MAGIC = [(row, offset, magic) for row in FOREIGN for offset, magic in row.magic]
INSIDE = [(row, name) for row in FOREIGN for name in row.inside]


def _refused(path, where) -> str:
    with pytest.raises(SourceError) as caught:
        aibit.convert(path, where / "m.aibit")
    assert not (where / "m.aibit").exists()
    return str(caught.value)


@pytest.mark.parametrize(("row", "ending"), ENDINGS, ids=lambda each: getattr(each, "name", each))
def test_a_file_is_told_by_its_ending(row, ending, tmp_path):
    path = tmp_path / f"Model{ending.upper()}"
    path.write_bytes(b"whatever")
    message = _refused(path, tmp_path)
    assert message == f"{path}: is of the format {row.name}: {row.why}; {row.instead}"


@pytest.mark.parametrize(("row", "offset", "magic"), MAGIC, ids=lambda each: getattr(each, "name", str(each)))
def test_a_file_is_told_by_its_first_bytes(row, offset, magic, tmp_path):
    path = tmp_path / "model.onnx"  # an ending decides less than the bytes
    path.write_bytes(bytes(offset) + magic + bytes(100))
    assert f"is of the format {row.name}: " in _refused(path, tmp_path)
    path.write_bytes(bytes(offset + 1) + magic)
    assert "is of the format ONNX: " in _refused(path, tmp_path)


@pytest.mark.parametrize(("row", "name"), INSIDE, ids=lambda each: getattr(each, "name", each))
@pytest.mark.parametrize("config", [False, True])
def test_a_directory_is_told_by_a_file_in_it(row, name, config, tmp_path):
    inside = tmp_path / "model"
    (inside / name).parent.mkdir(parents=True)
    (inside / name).write_bytes(b"whatever")
    if config:
        (inside / "config.json").write_text('{"model_type": "llama"}')
    assert f"is of the format {row.name}: " in _refused(inside, tmp_path)


def test_what_a_library_writes_is_recognized(tmp_path):
    np.savez(tmp_path / "model.npz", weight=np.zeros(3))
    assert "config.json beside them" in _refused(tmp_path / "model.npz", tmp_path)


def test_weights_that_are_read_come_first(tmp_path):
    from tests.support import architectures

    architectures.save("llama-untied", tmp_path / "hf")
    (tmp_path / "hf" / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "hf" / "model.onnx").write_bytes(b"")
    assert recognize(str(tmp_path / "hf")) is not None
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")


def test_what_fits_no_row_is_not_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert recognize(str(tmp_path / "notes.txt")) is None
    assert recognize(str(tmp_path)) is None
    assert recognize(str(tmp_path / "missing")) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    assert recognize(str(tmp_path / "model.onnx")) is None


def test_names_are_told_once():
    names = [row.name for row in FOREIGN]
    assert len(set(names)) == len(names)
    assert all(row.endings or row.magic or row.inside for row in FOREIGN)
