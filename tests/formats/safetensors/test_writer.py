"""Safetensors files are those of the reference."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from aibit_format.dtypes import DTYPES
from aibit_format.errors import WriteError
from aibit_format.formats.safetensors.writer import Entry, SafetensorsFile
from aibit_format.interop import to_torch


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"b": 'é"\\', "a": ""}])
def test_safetensors_files_are_those_of_the_reference(metadata, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        if dtype.is_packed:
            continue
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


def test_four_bit_floats_are_those_of_the_reference(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 4)).astype(np.uint8)
    theirs = {"a": torch.from_numpy(codes).view(torch.float4_e2m1fn_x2), "b": torch.zeros(3, dtype=torch.bool),
              "c": torch.zeros(3, dtype=torch.uint8)}  # fmt: skip
    entries = [Entry("a", "f4_e2m1", (2, 3, 8)), Entry("b", "bool", (3,)), Entry("c", "u8", (3,))]
    with SafetensorsFile(str(tmp_path / "ours"), entries, {"format": "pt"}) as out:
        out.write("a", codes.reshape(-1))
        out.write("b", np.zeros(3, np.bool_))
        out.write("c", np.zeros(3, np.uint8))
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save(theirs, {"format": "pt"})
    assert safetensors.torch.load_file(tmp_path / "ours")["a"].view(torch.uint8).numpy().tobytes() == codes.tobytes()


def test_six_bit_floats_open_in_the_reference(tmp_path):
    entries = [Entry("a", "f6_e2m3", (2, 2)), Entry("b", "f6_e3m2", (4,)), Entry("c", "f4_e2m1", (3, 2))]
    with SafetensorsFile(str(tmp_path / "ours"), entries, {}) as out:
        for entry in entries:
            out.write(entry.name, np.zeros(3, np.uint8))
    with safetensors.safe_open(tmp_path / "ours", "np") as file:
        found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in "abc"}
    assert found == {"a": ("F6_E2M3", [2, 2]), "b": ("F6_E3M2", [4]), "c": ("F4", [3, 2])}


@pytest.mark.parametrize(("dtype", "shape", "message"), [
    ("u4", (2, 4), "safetensors has no dtype for u4"), ("i2", (), "no dtype for i2"),
    ("f4_e2m1", (3, 3), r"f4_e2m1\[3, 3\] does not fill whole bytes"), ("f6_e3m2", (2,), "does not fill whole bytes"),
])  # fmt: skip
def test_what_safetensors_cannot_hold_is_refused(dtype, shape, message, tmp_path):
    with pytest.raises(WriteError, match=message):
        SafetensorsFile(str(tmp_path / "x"), [Entry("a", dtype, shape)], {})
    assert not (tmp_path / "x").exists()


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
