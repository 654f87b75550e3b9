"""The functions of safetensors' names, with arrays of numpy."""

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format import numpy as aibit_numpy
from aibit_format.errors import SchemeError
from tests.support.paths import FIXTURES

ARRAYS = {
    "floats": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "halves": np.arange(5, dtype=np.float16),
    "codes": np.arange(-3, 3, dtype=np.int8).reshape(3, 2),
    "scalar": np.array(7, np.int64),
    "nothing": np.zeros((0, 4), np.float64),
    "mask": np.array([True, False]),
}


def test_arrays_come_back_as_they_were_saved(tmp_path):
    path = tmp_path / "m.aibit"
    aibit_numpy.save_file(ARRAYS, path)
    found = aibit_numpy.load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name
    with aibit_numpy.safe_open(path) as file:
        assert list(file.keys()) == list(ARRAYS)
        assert np.array_equal(file.get_tensor("codes"), ARRAYS["codes"])
    aibit_numpy.save_file({"other": ARRAYS["codes"]}, path)  # replaces the file
    assert list(aibit_numpy.load_file(path)) == ["other"]


def test_quantized_tensors_come_as_float32_values():
    path = FIXTURES / "container" / "hello.aibit"
    with aibit.open(path) as file, aibit_numpy.safe_open(path) as ours:
        for name in file:
            expected = file.dequantize(name)
            found = ours.get_tensor(name)
            assert np.array_equal(found.astype(np.float32), expected), name
            if file.info(name).scheme.name == "int8":
                assert found.dtype == np.float32


def test_a_dtype_that_the_format_has_not_is_refused_by_name(tmp_path):
    with pytest.raises(SchemeError, match=r"'phases'.*complex64"):
        aibit_numpy.save_file({"phases": np.zeros(2, np.complex64)}, tmp_path / "m.aibit")
    assert not list(tmp_path.iterdir())
