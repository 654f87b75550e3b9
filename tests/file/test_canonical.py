"""What is valid, but not as the encoders and the writer would have it."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.dtypes import DTYPES, from_float32
from aibit_format.errors import SchemeError
from aibit_format.file.canonical import other_forms
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write
from aibit_format.schemes import make, parse
from tests.support import vectors
from tests.support.paths import FIXTURES
from tools.fixtures import mutators

SCHEMES = (
    "int8", "int8-absmax", "int8-absmax,group=16", "int8-absmax,group=tensor", "int8-zp", "int8-zp,group=16",
    "int8-zp,group=tensor", "int8-outlier,threshold=2", "fp8-e4m3", "fp8-e4m3,group=tensor", "cluster",
    "cluster,bits=2", "cluster,bits=3", "cluster,bits=8", "int4-group,group=16", "int4-group,group=row,symmetric=1",
    "nf4,block_size=32", "nf4,nested=1", "fp4,block_size=32", "nf4-cpu", "gguf:q4_0",
)  # fmt: skip


def found(data):
    """(tensor, plane, what is otherwise) of a file that is verified in full first."""
    with File(data, "full") as file:
        return [(form.tensor, form.plane, form.what) for form in other_forms(file)]


def written(folder, text, values, dtype="f32"):
    """A file of one tensor of these float32 values, as its scheme encodes them."""
    scheme = parse(text).fitted(values, dtype)
    stored = from_float32(values, dtype)
    path = folder / "m.aibit"
    write(path, {Tensor("w", values.shape, dtype, scheme): scheme.encode(stored, dtype)}, {}, {}, overwrite=True)
    return path.read_bytes()


def fits(text, shape):
    try:
        parse(text).planes(shape, "f32")
    except SchemeError:
        return False
    return True


@pytest.mark.parametrize("text", SCHEMES)
def test_what_encoders_write_is_canonical(text, tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((0,), (65,), (3, 0), (0, 4), (3, 33), (32, 128), (2, 3, 32)):
        if not fits(text, shape):
            continue
        rare = rng.standard_normal(shape) * (rng.random(shape) < 0.02)
        for values in (rng.standard_normal(shape), rng.integers(-2, 3, shape), np.zeros(shape), rare, rare * 1e-40,
                       rng.standard_t(1.5, shape), np.full(shape, -1.5)):  # fmt: skip
            data = written(tmp_path, text, np.clip(values, -60000, 60000).astype(np.float32))
            assert found(data) == [], shape


TRIPLE = np.array([[1, -2, 0.5], [0, 0, 0], [4, 1, 2]], np.float32)
LONG = np.arange(66, dtype=np.float32).reshape(3, 22) * (np.arange(3) != 1)[:, None]  # a row of zeros


@pytest.mark.parametrize(("text", "values", "changes", "role", "what"), [
    ("int8", TRIPLE, {"codes": {0: -128}}, "codes", "-128"),
    ("int8", TRIPLE, {"row_absmax": {1: 2}}, "row_absmax", "a row without a code but 0"),
    ("int8", TRIPLE, {"row_absmax": {0: 0}}, "codes", "under a scale of 0"),
    ("int8", np.zeros((2, 0), np.float32), {"row_absmax": {1: 2}}, "row_absmax", "a row without a code but 0"),
    ("int8-outlier", TRIPLE, {"codes": {0: -128}}, "codes", "-128"),
    ("int8-absmax", TRIPLE, {"codes": {0: -128}}, "codes", "-128"),
    ("int8-absmax", TRIPLE, {"scale": {1: 2}}, "scale", "a group without"),
    ("int8-absmax", np.zeros((2, 0), np.float32), {"scale": {1: 2}}, "scale", "a group without"),
    ("int8-absmax,group=tensor", np.zeros((2, 0), np.float32), {"scale": {0: 2}}, "scale", "a group without"),
    ("int8-absmax,group=tensor", 0 * TRIPLE, {"codes": {2: 1}}, "codes", "under a scale of 0"),
    ("int8-absmax,group=16", LONG, {"scale": {3: 1}}, "scale", "a group without"),
    ("int8-zp,group=16", LONG, {"codes": {23: 1}}, "codes", "under a scale of 0"),
    ("int8-zp", TRIPLE, {"scale": {1: 1}, "zero_point": {1: 9}, "codes": {3: 9, 4: 9, 5: 9}}, "scale", "a group"),
    ("fp8-e4m3", TRIPLE, {"codes": {3: 0x80}, "scale": {1: 1}}, "scale", "a group without"),
    ("fp8-e4m3", TRIPLE, {"codes": {4: 0x81}}, "codes", "under a scale of 0"),
    ("nf4", TRIPLE, {"codes": lambda codes: codes & 0xF0}, "codes", "the nibble after the last code is not 7"),
    ("fp4", TRIPLE, {"codes": lambda codes: codes | 8}, "codes", "the nibble after the last code is not 0"),
    ("nf4", 0 * TRIPLE, {"absmax": {0: 1}}, "absmax", "a block without"),
    ("nf4,block_size=32", np.zeros((2, 32), np.float32), {"codes": {3: 0x78}}, "codes", "under a scale of 0 is not 7"),
    ("fp4,block_size=32", np.zeros((2, 32), np.float32), {"codes": {3: 0x80}}, "codes", "under a scale of 0 is not 0"),
    ("nf4,nested=1", np.zeros((0, 4), np.float32), {"nested_offset": {0: 1}}, "nested_offset", "no scales"),
    ("cluster", TRIPLE, {"codebook": lambda book: np.r_[book[:6], [5] * 10]}, "codebook", "entry 6"),
    ("cluster,bits=2", np.arange(8, dtype=np.float32), {"codes": lambda codes: codes | 0xAA}, "codebook", "entry 0"),
    ("cluster", np.zeros((0, 4), np.float32), {"codebook": lambda book: book + 1}, "codebook", "not all zeros"),
])  # fmt: skip
def test_another_form_that_decodes_is_found(text, values, changes, role, what, tmp_path):
    data = written(tmp_path, text, values)
    changed = mutators.altered(data, **changes)
    (form,) = [form for form in found(changed) if form[1] == role]
    assert form[0] == "w" and what in form[2]


def test_both_zeros_of_fp4_are_written(tmp_path):
    """Small values above zero get code 8, those below it code 0."""
    values = np.array([1, 0.001, -0.001, 0], np.float32)
    data = written(tmp_path, "fp4", values)
    assert mutators.planes_of(data)["codes"].tolist() == [0x38, 0x00] and found(data) == []


def test_what_a_writer_of_this_version_leaves_out_is_found():
    container = FIXTURES / "container"
    for name, wanted in (("newer-minor", 3), ("extra-section", 1)):
        forms = found((container / f"{name}.aibit").read_bytes())
        assert len(forms) == wanted and all(form[:2] == (None, None) for form in forms), forms
    assert found((container / "signed.aibit").read_bytes()) == []


def test_most_fixtures_are_canonical():
    odd = {path.stem for path in vectors.GOOD if found(path.read_bytes())}
    assert {"hello", "empty", "dtypes", "shapes", "signed", "documents"}.isdisjoint(odd)
    assert {"newer-minor", "extra-section", "sections"} <= odd


def test_every_scheme_answers():
    """A plain dtype has one form only."""
    for name in DTYPES:
        assert list(make(name).other_forms({}, (2,))) == []
