"""Conversions leaf by leaf: the same bytes as tensor by tensor, whatever the scheme, the threads and the order."""

import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
import transformers as tf
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import aibit_format as aibit
from aibit_format.container.layout import LEAF
from aibit_format.container.plan import Tensor, plan
from aibit_format.convert import encoders, pipeline
from aibit_format.dtypes import DTYPES
from aibit_format.errors import SchemeError, WriteError
from aibit_format.file import writer
from aibit_format.file.reader import File
from aibit_format.file.writer import Writer
from aibit_format.formats.sources import open_source
from aibit_format.interop import to_numpy
from aibit_format.schemes import parse
from aibit_format.schemes.base import matrix
from tests.support.rows import models as models
from tests.support.rows import paged
from tests.support.rows import small_pages as small_pages

BY_ROWS = [
    "f16", "bf16", "f32", "int8", "int8-absmax", "int8-absmax,group=32", "int8-zp", "int8-zp,group=16", "fp8-e4m3",
    "int4-group,group=32", "int4-group,group=row,symmetric=1", "nf4", "fp4,block_size=32", "gguf:q4_0", "gguf:q4_1",
    "gguf:q5_0", "gguf:q5_1", "gguf:q8_0",
]  # fmt: skip
WHOLE = ["nf4,nested=1", "nf4,block_size=256", "int8-absmax,group=tensor", "int8-zp,group=tensor", "nf4-cpu"]
SHAPE = (37, 3, 320)  # as a matrix 111 rows; 320 is no multiple of 256


def values(shape, dtype="f16", seed=0):
    """Normal numbers, one row of zeros among them: an array, in the storage of ``dtype``."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[len(x) // 2] = 0
    return to_numpy(x.to({"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]))[0]


# Schemes that say they go by rows


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("text", BY_ROWS)
def test_planes_of_rows_are_rows_of_planes(text, dtype):
    scheme, array = parse(text), values(SHAPE, dtype)
    assert scheme.by_rows(SHAPE)
    logical = text if text in DTYPES else dtype
    rows, columns = matrix(SHAPE)
    flat = array.reshape(rows, columns)
    for encode in (encoders.encode, lambda scheme, *rest: scheme.encode(*rest)):
        whole = encode(scheme, array, dtype)
        for cut in (range(1), range(1, 64), range(64, rows)):
            part = encode(scheme, flat[cut.start : cut.stop], dtype)
            for spec in scheme.planes((len(cut), columns), logical):
                expected = whole[spec.role].reshape(rows, -1)[cut.start : cut.stop]
                assert part[spec.role].shape == spec.shape
                assert part[spec.role].tobytes() == expected.tobytes(), (spec.role, cut)


@pytest.mark.parametrize("text", WHOLE)
def test_schemes_that_look_at_more_than_a_row_do_not_say_so(text):
    assert not parse(text).by_rows(SHAPE)


# The writer


def written(path, content, order=None, threads=1):
    """A file of tensors {name: (scheme, array)}, each by rows where it can be, in some order of chunks."""
    tensors = [Tensor(name, array.shape, "f16", parse(text)) for name, (text, array) in content.items()]
    with Writer(path, plan(tensors, {}, {}), overwrite=True) as out:
        jobs = []
        for tensor in tensors:
            array, scheme = content[tensor.name][1], tensor.scheme
            rows, columns = matrix(array.shape)
            chunks = out.chunks(tensor.name)
            if not chunks:
                out.write(tensor.name, encoders.encode(scheme, array, "f16"))
            each = chunks[-1].stop // rows if chunks else 0
            for chunk in chunks:
                cut = range(chunk.start // each, -(-chunk.stop // each))
                planes = encoders.encode(scheme, array.reshape(rows, columns)[cut.start : cut.stop], "f16")
                jobs.append((tensor.name, cut, planes, chunk))
        if order is not None:
            order.shuffle(jobs)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda job: out.write_rows(*job), jobs))
        return out.commit(), len(jobs)


CONTENT = {
    "a": ("int8", values((1500, 1003))), "b": ("nf4", values((3000, 832), seed=1)), "c": ("f16", values((7,), seed=2)),
    "d": ("int4-group", values((3, 700, 1001), seed=3)), "e": ("f16", values((1100, 1201), seed=4)),
    "long": ("f16", values((2, LEAF // 8), seed=5)), "nested": ("nf4,nested=1", values((64, 64), seed=6)),
    "none": ("int8", values((4, 4))[:, :0]), "scalar": ("f16", np.array(3, np.float16)),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 4])
@settings(max_examples=10)
@given(order=st.randoms(use_true_random=False))
def test_a_tensor_written_by_rows_is_the_tensor_written_whole(threads, order, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    found, count = written(folder / "m.aibit", CONTENT, order, threads)
    assert count > 12
    with File(folder / "m.aibit", "full") as file:
        assert file.root == found.root().hex()
        for name, (text, array) in CONTENT.items():
            expected = encoders.encode(parse(text), array, "f16")
            for role, plane in file.planes(name).items():
                assert plane.tobytes() == np.ascontiguousarray(expected[role]).tobytes(), (name, role)
    (folder / "m.aibit").unlink()


def test_chunks_end_where_leaves_do(tmp_path):
    tensors = [Tensor("a", (1500, 1003), "f16", parse("int8")), Tensor("b", (2, LEAF // 4), "f16", parse("int8"))]
    info = plan(tensors, {}, {})
    with Writer(tmp_path / "m.aibit", info) as out:
        chunks = out.chunks("a")
        assert [s.start for s in chunks[1:]] == [s.stop for s in chunks[:-1]]
        assert (chunks[0].start, chunks[-1].stop) == (0, 1500 * 1003)
        data = info.file_size - sum(info.plane_table["length"].tolist())  # an upper bound of where the data begin
        offset = info.tensor("a").planes[0].offset
        regions = out._regions[1]
        assert all((offset + s.stop - regions.start) % LEAF == 0 for s in chunks[:-1])
        assert regions.start <= data + LEAF and len(chunks) == 2
        assert out.chunks("b") == []  # its rows are too long


@pytest.mark.parametrize(("page", "leaves"), [(1, 1), (4096, 1), (LEAF, 1), (2 * LEAF, 2), (64 * LEAF, 4)])
def test_a_chunk_fills_pages_and_never_changes_a_byte(page, leaves, tmp_path, monkeypatch):
    content = {"a": ("int8", values((4000, 3003))), "b": ("nf4", values((2100, 2048), seed=1))}
    usual = written(tmp_path / "usual.aibit", content)[0]
    monkeypatch.setattr(writer, "make_room", paged(page))
    found, count = written(tmp_path / "m.aibit", content)
    assert found.root() == usual.root()
    with Writer(tmp_path / "n.aibit", found) as out:
        lengths = [len(chunk) for name in content for chunk in out.chunks(name)]
    assert len(lengths) == count and max(lengths) == leaves * LEAF


def test_rows_that_do_not_fit_are_refused(tmp_path):
    array = values((1500, 1003))
    int8 = parse("int8")
    tensor = Tensor("a", array.shape, "f16", int8)
    with Writer(tmp_path / "m.aibit", plan([tensor], {}, {})) as out:
        first, second = out.chunks("a")
        cut = range(-(-first.stop // 1003))
        planes = encoders.encode(int8, array[: cut.stop], "f16")

        def refused(kind, match, rows=cut, planes=planes, chunk=first):
            with pytest.raises(kind, match=match):
                out.write_rows("a", rows, planes, chunk)

        refused(WriteError, rf"planned i8\[{cut.stop - 1}, 1003\]", rows=range(cut.stop - 1))
        refused(WriteError, "do not fit int8", planes={"codes": planes["codes"]})
        refused(WriteError, "no range", chunk=second)
        refused(WriteError, "no range", chunk=range(first.stop - 1))
        refused(
            SchemeError, "a scale is not finite", planes=planes | {"row_absmax": np.full(cut.stop, np.inf, np.float32)}
        )
        out.write_rows("a", cut, planes, first)
        refused(WriteError, "no range")
        with pytest.raises(WriteError, match="not written: a"):
            out.commit()
    assert not os.listdir(tmp_path)


# The source


def torch_files(folder, tensors):
    """The same tensors as torch.save writes them, and such a file inside an archive, stored and packed."""
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    for name, method in (("stored.zip", zipfile.ZIP_STORED), ("packed.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", method) as file:
            file.write(folder / "config.json", "config.json")
            file.write(folder / "pytorch_model.bin", "model.pt")
    return [open_source(folder), open_source(folder / "stored.zip"), open_source(folder / "packed.zip")]


def gguf_file(path, tensors):
    writer = gguf.GGUFWriter(str(path), "unheard-of")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.add_tensor("q", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return open_source(path)


def test_a_source_says_where_values_lie_as_they_are(models, tmp_path):
    base = torch.randn(8, 6)
    tensors = {"a": base, "rows": base[2:5], "columns": base[:, 1:3], "turned": base.t(), "empty": base[:0],
               "half": base.half(), "one": base[0, 0]}  # fmt: skip
    directory, stored, packed = torch_files(tmp_path, tensors)
    arrays = {"f": np.arange(12, dtype=np.float32).reshape(3, 4), "h": np.ones(5, np.float16)}
    known = {
        directory: {"a", "rows", "half", "one"},
        stored: {"a", "rows", "half", "one"},
        packed: set(),
        gguf_file(tmp_path / "m.gguf", arrays): {"f", "h"},
    }
    of_safetensors = open_source(models["float16"])
    known[of_safetensors] = set(of_safetensors.tensors)
    for source, names in known.items():
        files = {file.name: np.fromfile(file.path, np.uint8) for file in source.files}
        assert {name for name, tensor in source.tensors.items() if tensor.offset is not None} == names
        for name in names:
            tensor, values = source.tensors[name], source.planes(name)["values"]
            found = files[tensor.file][tensor.offset :][: values.nbytes]
            assert found.tobytes() == values.tobytes(), name


def test_nothing_is_read_to_learn_where_it_lies(models, tmp_path, monkeypatch):
    """Reading a tensor of a model in memory copies it."""
    model = tf.LlamaForCausalLM.from_pretrained(models["float16"], dtype=torch.float16)
    source, written, most = open_source(model), [], []
    planes, write = type(source).planes, writer.Writer.write_rows
    read = []
    monkeypatch.setattr(type(source), "planes", lambda self, name: read.append(name) or planes(self, name))

    def write_rows(self, name, *args):
        written.append(name)
        most.append(len(set(read)) - len(set(written)))
        write(self, name, *args)

    monkeypatch.setattr(writer.Writer, "write_rows", write_rows)
    aibit.convert(source, tmp_path / "m.aibit", "int8", jobs=1)
    assert max(most) <= 1 and len(set(read)) == len(source.tensors) == len(read)


# Whole conversions


def steps(monkeypatch):
    """How many tensors went as a whole, and how many pieces of others went by rows."""
    counts, lock = {"_whole": 0, "_rows": 0}, threading.Lock()

    def counted(name):
        does = getattr(pipeline.Pipeline, name)

        def wrapped(self, *args):
            with lock:
                counts[name] += 1
            return does(self, *args)

        monkeypatch.setattr(pipeline.Pipeline, name, wrapped)

    counted("_whole"), counted("_rows")
    return counts


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", ["int8", "nf4", "int8-zp,group=32", "int4-group,group=64", "gguf:q8_0", "bf16"])
def test_by_rows_and_as_a_whole_a_model_has_the_same_bytes(scheme, dtype, models, tmp_path, monkeypatch):
    counts = steps(monkeypatch)
    roots = {aibit.convert(models[dtype], tmp_path / f"{jobs}.aibit", scheme, jobs=jobs).root for jobs in (1, 3)}
    assert counts["_whole"] == 0 and counts["_rows"] > 2 * 25
    counts.update(_rows=0)
    monkeypatch.setattr(writer, "_LONG_ROW", -1)
    report = aibit.convert(models[dtype], tmp_path / "whole.aibit", scheme)
    assert counts == {"_whole": len(report.tensors), "_rows": 0}
    assert roots == {report.root}
    with File(tmp_path / "1.aibit", "full") as file:
        for path, found in zip(
            sorted(models[dtype].glob("*.safetensors")), file.metadata["source.xxh3_128"], strict=True
        ):
            assert found == xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_progress_and_memory_models(models, tmp_path):
    model = tf.LlamaForCausalLM.from_pretrained(models["float16"], dtype=torch.float16)
    seen = []
    report = aibit.convert(model, tmp_path / "a.aibit", "int8", on_progress=lambda *what: seen.append(what))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] == report.original_bytes
    assert sorted(name for _, _, name in seen) == sorted(tensor.name for tensor in report.tensors)
    other = aibit.convert(models["float16"], tmp_path / "b.aibit", "int8")
    with File(tmp_path / "a.aibit") as a, File(tmp_path / "b.aibit") as b:
        assert all(np.array_equal(plane, b.planes(name)[role]) for name in a for role, plane in a.planes(name).items())
    assert [t.error for t in report.tensors] == [t.error for t in other.tensors]


@pytest.mark.parametrize("jobs", [1, 4])
def test_what_goes_wrong_in_a_thread_is_raised_and_nothing_is_left(jobs, models, tmp_path):
    import safetensors.torch

    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir(), target.mkdir()
    for file in models["float16"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = sorted(source.glob("*.safetensors"))[1]
    tensors = safetensors.torch.load_file(weights)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name][-1, -1] = float("nan")
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    before = threading.active_count()
    with pytest.raises(SchemeError, match=rf"source: tensor '{name}' \(from {name}\): a value is not finite"):
        aibit.convert(source, target / "m.aibit", "int8", jobs=jobs)
    assert not os.listdir(target) and threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        aibit.convert(models["float16"], target / "m.aibit", jobs=jobs, on_progress=lambda *what: 1 / 0)
    assert not os.listdir(target) and threading.active_count() == before
