"""What holds for every file: properties over random models."""

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor

import craft
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibit_format.container import layout
from aibit_format.container.metadata import decode, encode
from aibit_format.container.names import TENSOR_CHARACTERS, bad_document_name
from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan
from aibit_format.schemes import make

calm = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

names = st.text(TENSOR_CHARACTERS.decode(), min_size=1, max_size=20).filter(lambda name: not name.startswith("__"))
names |= st.just("n" * layout.MAX_NAME)
part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,8}", fullmatch=True)
document_names = st.lists(part, min_size=1, max_size=3).map("/".join).filter(lambda name: not bad_document_name(name))
keys = st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z0-9_]{1,5}){1,3}", fullmatch=True).filter(
    lambda key: not key.startswith(("model.", "source.", "quantization."))
)
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = [integers, floats, st.booleans(), text, st.binary(max_size=12)]
lists = [st.lists(scalar, max_size=5) for scalar in scalars]
lists += [st.lists(integers, max_size=5).map(lambda v: np.array(v, "<i8"))]
lists += [st.lists(floats, min_size=1, max_size=5).map(lambda v: np.array(v, "<f8"))]
metadata = st.dictionaries(keys, st.one_of(*scalars, *lists), max_size=6)
# Ranks 0 to 8, dimensions often 0 and 1; a bulk plane now and then.
shapes = st.lists(st.sampled_from((1, 2, 1, 3, 0, 1, 4, 2)), max_size=layout.MAX_RANK).map(tuple)
shapes |= st.sampled_from([(70, 70), (4096,), (5, 1000), (1, 1, 33, 250)])


@st.composite
def models(draw):
    """(tensors with planes, metadata, documents, alignment)"""
    tensors, content = [], {}
    for name in draw(st.lists(names, max_size=7, unique=True)):
        owners = [tensor for tensor in tensors if tensor.alias_of is None]
        if owners and draw(st.integers(0, 4)) == 0:
            owner = draw(st.sampled_from(owners))
            tensor, planes = Tensor(name, owner.shape, owner.dtype, owner.scheme, owner.name, owner.transposed), {}
        else:
            shape = draw(shapes)
            rows = len(shape) > 1 and draw(st.booleans())
            dtype = draw(st.sampled_from(("f16", "bf16", "f32") if rows else tuple(DTYPES)))
            scheme = make("int8" if rows else dtype)
            tensor = Tensor(name, shape, dtype, scheme, transposed=len(shape) == 2 and draw(st.booleans()))
            array = craft.values(dtype, shape, draw(st.integers(0, 9)))
            planes = {role: np.asarray(plane) for role, plane in scheme.encode(array, dtype).items()}
        tensors.append(tensor)
        content[tensor] = planes
    documents = draw(st.dictionaries(document_names, st.binary(max_size=200), max_size=4))
    taken, unique = set(), {}
    for name in sorted(documents):
        folders = {name[:i].lower() for i, character in enumerate(name) if character == "/"}
        if name.lower() not in taken and not folders & {other.lower() for other in unique}:
            taken |= folders | {name.lower()}
            unique[name] = documents[name]
    return content, draw(metadata), unique, draw(st.sampled_from(layout.ALIGNMENTS))


def write(content, values, documents, alignment, jobs=1, backwards=False):
    """The file's bytes, its tensors written by ``jobs`` threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "m.aibit")
        info = plan(content, values, {name: len(data) for name, data in documents.items()}, alignment)
        with Writer(path, info) as writer, ThreadPoolExecutor(jobs) as pool:
            for tensor, planes in list(content.items())[:: -1 if backwards else 1]:
                if tensor.alias_of is None:
                    pool.submit(writer.write, tensor.name, planes).add_done_callback(Future.result)
            pool.shutdown()
            for name, data in documents.items():
                writer.write_document(name, data)
            writer.commit()
        with open(path, "rb") as file:
            return file.read()


def same(found, value):
    """Metadata as it comes back: lists of numbers are arrays, lists of one type stay lists."""
    if isinstance(value, np.ndarray) or (isinstance(value, list) and type((value or [0])[0]) in (int, float)):
        wanted = np.asarray(value, "<f8" if len(value) and isinstance(value[0], float) else "<i8")
        return isinstance(found, np.ndarray) and found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()
    if isinstance(value, float):
        return isinstance(found, float) and np.float64(found).tobytes() == np.float64(value).tobytes()
    return type(found) is type(value) and found == value


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
    front = craft.front_end(data)
    columns = [craft.table(data, record)[field].tolist() for record, field in craft.PLACED]
    document_offsets, _, data_start, offsets, end = craft.place(front, *columns, alignment)
    assert craft.table(data, "document")["offset"].tolist() == document_offsets
    assert craft.table(data, "plane")["offset"].tolist() == offsets
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
    assert craft.reseal(data, leaves=True) == data


@settings(calm, max_examples=30)
@given(models())
def test_header_and_front_matter_come_from_the_tables_alone(model):
    data = write(*model)
    info = File(data).tables
    front = info.front_matter()
    assert info.header(front) + front == data[: craft.HEAD + len(front)]
    assert info.front_matter_length == len(front)


@settings(calm, max_examples=150)
@given(metadata)
def test_metadata_comes_back_and_has_one_encoding(values):
    data = encode(values)
    found = decode(data)
    assert list(found) == sorted(values)
    assert all(same(found[key], value) for key, value in values.items())
    assert encode(found) == data


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


@settings(calm, max_examples=60)
@given(st.sampled_from(sorted(DTYPES)), shapes, st.integers(0, 9))
def test_plain_values_keep_their_bits(dtype, shape, seed):
    array = craft.values(dtype, shape, seed)
    scheme = make(dtype)
    planes = scheme.encode(array, dtype)
    assert planes["values"].tobytes() == array.tobytes()
    assert sum(spec.nbytes for spec in scheme.planes(shape, dtype)) == array.nbytes
    assert np.array_equal(scheme.decode(planes, shape, dtype), to_float32(array, dtype))
