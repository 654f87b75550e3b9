"""Safetensors files are those of the reference."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from aibit_format.dtypes import DTYPES
from aibit_format.errors import WriteError
from aibit_format.formats.safetensors.writer import Entry, SafetensorsFile
from aibit_format.interop import to_torch


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"b": 'é"\\', "a": ""}])
def test_safetensors_files_are_those_of_the_reference(metadata, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        for shape in ((), (3, 5), (0, 2), (2,)):
            raw = rng.integers(0, 2, (*shape, dtype.numpy.itemsize), np.uint8)
            arrays[f"{(i * 7) % 16}.{name}.{len(shape)}.{shape[:1]}"] = (name, raw.view(dtype.numpy).reshape(shape))
    entries = [Entry(key, dtype, value.shape) for key, (dtype, value) in arrays.items()]
    with SafetensorsFile(str(tmp_path / "ours"), entries, metadata) as out:
        for key in reversed(arrays):
            out.write(key, arrays[key][1])
    theirs = {key: to_torch(value, dtype) for key, (dtype, value) in arrays.items()}
    wanted = safetensors.torch.save(theirs, metadata)
    ours = (tmp_path / "ours").read_bytes()
    if len(metadata) == 1:  # the reference writes several in no particular order
        assert ours == wanted
    assert len(ours) == len(wanted)
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == metadata
        assert {key: tuple(file.get_tensor(key).shape) for key in file.keys()} == {  # noqa: SIM118
            key: value.shape for key, (_, value) in arrays.items()
        }


def test_safetensors_files_are_written_whole_or_refused(tmp_path):
    entry = Entry("a", "f32", (2,))
    with pytest.raises(WriteError, match="1 tensors were not written: 'a'"), \
            SafetensorsFile(str(tmp_path / "x"), [entry], {}):  # fmt: skip
        pass
    with pytest.raises(WriteError, match=r"'a': float64\[2\], planned f32\[2\]"), \
            SafetensorsFile(str(tmp_path / "y"), [entry], {}) as out:  # fmt: skip
        out.write("a", np.zeros(2))
    with pytest.raises(WriteError, match="2 tensors under 1 names"):
        SafetensorsFile(str(tmp_path / "z"), [entry, entry], {})
