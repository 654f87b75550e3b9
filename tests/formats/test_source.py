"""Tensors and files as a source has them."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from aibit_format.container.layout import MAX_ELEMENTS, MAX_RANK
from aibit_format.errors import SourceError
from aibit_format.formats.source import SourceFile, SourceTensor, values
from aibit_format.schemes import make


@pytest.mark.parametrize(
    "shape", [(1,) * (MAX_RANK + 1), (-1,), (MAX_ELEMENTS + 1,), (MAX_ELEMENTS, 0, 2), (MAX_ELEMENTS, 2)]
)
def test_a_shape_that_the_format_has_no_place_for_is_refused_by_name(shape):
    with pytest.raises(SourceError, match=r"m\.safetensors: tensor 'a\.weight'"):
        SourceTensor("a.weight", shape, "f32", "m.safetensors")


@pytest.mark.parametrize("shape", [(), (0,), (0, MAX_ELEMENTS), (1,) * MAX_RANK])
def test_shapes_at_the_limits_are_taken(shape):
    assert SourceTensor("a", shape, "f32", "m").shape == shape


def test_what_is_stored_has_the_bytes_of_its_planes():
    plain, quantized = SourceTensor("a", (3, 64), "bf16", "m"), SourceTensor("b", (3, 64), "f16", "m", make("int8"))
    assert plain.stored == make("bf16") and plain.nbytes == 3 * 64 * 2
    assert quantized.stored == make("int8") and quantized.nbytes == 3 * 64 + 3 * 4


def test_values_of_a_quantized_tensor_are_decoded():
    array = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    scheme = make("int8")
    planes = {"a": {"values": array}, "b": scheme.encode(array, "f32")}
    tensors = {"a": SourceTensor("a", (2, 3), "f32", "m"), "b": SourceTensor("b", (2, 3), "f32", "m", scheme)}
    source = SimpleNamespace(tensors=tensors, planes=planes.get)
    found, dtype = values(source, "a")
    assert found is array and dtype == "f32"
    found, dtype = values(source, "b")
    assert dtype == "f32" and np.array_equal(found, scheme.decode(planes["b"], (2, 3), "f32"))


def test_a_file_that_was_written_to_or_is_gone_has_another_state(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"1234")
    file = SourceFile("model.safetensors", str(path), 4)
    before = file.state
    assert before is not None and before == file.state
    os.utime(path, ns=(1, 1))
    assert file.state != before
    path.unlink()
    assert file.state is None


@pytest.mark.parametrize("shape", [(), (3,)])
def test_what_is_no_matrix_is_not_transposed(shape):
    with pytest.raises(SourceError, match=r"m\.gguf: tensor 'a': shape \[3?\], where the architecture has a matrix"):
        SourceTensor("a", shape, "f32", "m.gguf", transposed=True)
