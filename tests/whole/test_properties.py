"""What holds for every file: properties over random models."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.dtypes import from_float32, to_float32
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make
from tests.support.random_models import calm, models, write
from tests.support.same import same
from tools.fixtures import file_builder


@settings(calm, max_examples=60)
@given(models())
def test_a_model_is_read_as_it_was_written_and_written_again_it_is_the_same_file(model):
    content, values, documents, _ = model
    data = write(*model)
    file = File(data, "full")
    assert file.keys() == [tensor.name for tensor in content]
    assert list(file.metadata) == sorted(values)
    assert all(same(file.metadata[key], value) for key, value in values.items())
    assert {name: bytes(view) for name, view in file.documents.items()} == documents
    again = {}
    for tensor, planes in content.items():
        info = file.info(tensor.name)
        assert Tensor(info.name, info.shape, info.dtype, info.scheme, info.alias_of, info.transposed) == tensor
        found = file.planes(tensor.name)
        assert [plane.role for plane in info.planes] == list(found)
        target = next(t for t in content if t.name == (tensor.alias_of or tensor.name))
        for role, plane in content[target].items():
            assert found[role].dtype == plane.dtype
            assert found[role].shape == plane.shape
            assert found[role].tobytes() == plane.tobytes()
        assert file.dequantize(tensor.name).shape == tensor.shape
        again[tensor] = found if planes else {}
    held = {name: bytes(view) for name, view in file.documents.items()}
    assert write(again, file.metadata, held, file.tables.alignment) == data


@settings(calm, max_examples=25)
@given(models())
def test_bytes_do_not_depend_on_threads_or_on_the_order_of_writing(model):
    assert write(*model, jobs=1) == write(*model, jobs=4, backwards=True)


@settings(calm, max_examples=40)
@given(models())
def test_planes_and_documents_tile_the_file(model):
    *_, alignment = model
    data = write(*model)
    front = file_builder.front_end(data)
    columns = [file_builder.table(data, record)[field].tolist() for record, field in file_builder.PLACED]
    document_offsets, _, data_start, offsets, end = file_builder.place(front, *columns, alignment)
    assert file_builder.table(data, "document")["offset"].tolist() == document_offsets
    assert file_builder.table(data, "plane")["offset"].tolist() == offsets
    assert len(data) == end
    # Not by the formula: nothing overlaps, nothing but padding is between, and every plane is aligned.
    pieces = [(offset, length, 64) for offset, length in zip(document_offsets, columns[0], strict=True)]
    pieces += [
        (o, n, alignment if n >= alignment and role in (1, 2, 13, 14) else 64)
        for o, n, role in zip(offsets, *columns[1:], strict=True)
    ]
    position = front
    for offset, length, step in sorted(pieces):
        assert offset >= position
        assert offset % step == 0
        assert offset - position < max(alignment, 64) or offset == data_start
        assert not any(data[position:offset])
        position = offset + length
    assert not any(data[position:])
    # The root and the leaves are those that anybody can compute.
    assert file_builder.reseal(data, leaves=True) == data


rows = st.integers(0, 1000).map(np.random.default_rng)


@settings(calm, max_examples=60)
@given(rows, st.integers(0, 5), st.integers(0, 70), st.floats(-6, 4), st.sampled_from(("f32", "bf16", "f16")))
def test_int8_is_within_half_a_step_and_a_rounding_to_float16(rng, height, width, magnitude, dtype):
    exact = (rng.standard_normal((height, width)) * 10**magnitude).clip(-6e4, 6e4).astype(np.float32)
    stored = from_float32(exact, dtype)
    x = to_float32(stored, dtype)
    scheme = make("int8")
    planes = scheme.encode(stored, dtype)
    found = scheme.decode(planes, x.shape, dtype)
    half = x.astype(np.float16).astype(np.float64)
    absmax = np.abs(half).max(axis=1, initial=0)
    assert np.array_equal(planes["row_absmax"], absmax.astype(np.float32))
    assert not list(scheme.bad_values(planes))
    # Half a step of the codes, what float16 takes away, and a few float32 roundings.
    bound = absmax[:, None] / 254 * (1 + 1e-5) + np.abs(half - x)
    assert (np.abs(found - x.astype(np.float64)) <= bound).all()
    direct = planes["codes"].astype(np.float64) * planes["row_absmax"].astype(np.float64)[:, None] / 127
    assert np.allclose(found, direct, rtol=4e-7, atol=0)


@settings(calm, max_examples=40)
@given(rows, st.integers(1, 5), st.integers(1, 70), st.integers(-8, 8))
def test_int8_of_whole_numbers_up_to_127_is_exact(rng, height, width, exponent):
    # Scales of a power of two: every product is exact, so the decoded values are the float64 ones.
    whole = rng.integers(-127, 128, (height, width))
    whole[:, 0] = 127
    x = (whole * 2.0**exponent).astype(np.float32)
    scheme = make("int8")
    planes = scheme.encode(x, "f32")
    assert np.array_equal(planes["codes"], whole)
    direct = whole * planes["row_absmax"].astype(np.float64)[:, None] / 127
    assert np.array_equal(direct, x)
    assert np.allclose(scheme.decode(planes, x.shape, "f32"), direct, rtol=1.2e-7, atol=0)
