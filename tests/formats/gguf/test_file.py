"""GGUF files are read or refused."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format.cli.inspect import describe
from aibit_format.errors import SourceError
from aibit_format.formats.gguf.file import TYPES, GGUFFile
from aibit_format.formats.sources import open_source
from aibit_format.schemes.ggml import LAYOUTS
from tests.support.gguf_models import finish, plain, sentencepiece, text

transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("key", ["general.alignment", "split.count", "llama.expert_count", "llama.block_count"])
def test_lists_where_numbers_are_needed_are_refused(key, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array(key, [1, 2])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    finish(writer)
    try:
        assert "llama." in open_source(str(tmp_path / "m.gguf")).no_model
    except SourceError as error:
        assert key.split(".")[0] in ("general", "split") and "m.gguf" in str(error)


def test_types_without_a_scheme_and_parts_of_files_are_refused(tmp_path):
    for name, size in (("Q8_1", 40), ("Q8_K", 292)):  # of activations
        plain(tmp_path / "q.gguf", array=np.zeros((2, size), np.uint8), raw=gguf.GGMLQuantizationType[name])
        with pytest.raises(SourceError, match=rf"q\.gguf: tensor 'blk\.0\.w' is {name.lower()}, which has no scheme"):
            open_source(str(tmp_path / "q.gguf"))
    plain(tmp_path / "part.gguf", **{"split.no": 1, "split.count": 3})
    with pytest.raises(SourceError, match="part 2 of 3: open the first part"):
        open_source(str(tmp_path / "part.gguf"))


def test_every_type_of_the_library_is_known_with_its_size():
    known = {number: (elements, size) for number, (_, elements, size) in TYPES.items()}
    assert {kind.value: size for kind, size in gguf.GGML_QUANT_SIZES.items()}.items() <= known.items()
    assert {kind.value: kind.name.lower() for kind in gguf.GGML_QUANT_SIZES}.items() <= {
        number: name for number, (name, _, _) in TYPES.items()
    }.items()
    for number, (name, elements, size) in TYPES.items():
        if scheme := LAYOUTS.get(f"gguf:{name}"):
            assert (scheme.block, scheme.size) == (elements, size), number


def entry(name="w", dims=(32,), number=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


def raw_file(tensors=(), entries=(), version=3, data=bytes(256), counts=None) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries))))
    body = header + b"".join(entries) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


def pair(key, number, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", number) + value


HUGE = 1 << 63


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "do not fit"),
        (b"GGUF", "do not fit"),
        (b"GGML" + raw_file()[4:], "does not begin with GGUF"),
        (raw_file(version=1), "version 1"),
        (raw_file(version=0x03000000), "version 50331648"),
        (raw_file(counts=(HUGE, 0)), f"{HUGE} items"),
        (raw_file(counts=(0, HUGE)), f"{HUGE} items"),
        (raw_file(entries=[struct.pack("<QQ", HUGE, 0)]), "string 0 of 1 ends beyond"),
        (raw_file(entries=[pair(b"\xff", 4, bytes(4))]), "not UTF-8"),
        (raw_file(entries=[pair("a", 99, bytes(8))]), "unknown metadata type 99"),
        (raw_file(entries=[pair("a", 7, b"\2")]), "a bool at"),
        (raw_file(entries=[pair("a", 4, bytes(4)), pair("a", 4, bytes(4))]), "'a' is there twice"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 4, HUGE))]), f"{HUGE} items"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 8, HUGE))]), f"{HUGE} items"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQQ", 8, 1, HUGE))]), "string 0 of 1 ends beyond"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 9, 1) + bytes(8))]), "nested or unknown"),
        (raw_file(entries=[pair("a", 9, struct.pack("<IQ", 7, 1) + b"\7")]), "others than 0 and 1"),
        *[(raw_file(entries=[pair("general.alignment", 4, struct.pack("<I", n))]), f"general.alignment {n}")
          for n in (0, 4, 48, 1 << 30)],
        (raw_file([entry(dims=(1,) * 9)]), "rank 9"),
        (raw_file([entry(number=77)]), "unknown type 77"),
        (raw_file([entry(dims=(33,), number=2)]), "rows of 33 are not whole blocks of 32"),
        (raw_file([entry(dims=(HUGE, HUGE))]), "the file at"),
        (raw_file([entry(dims=(128,))]), "the file at"),
        (raw_file([entry(offset=256)]), "the file at"),
        (raw_file([entry(offset=(1 << 64) - 32)]), "the file at"),
        (raw_file([entry(offset=4)]), "not a multiple of 32"),
        (raw_file([entry(), entry("v")]), "inside another that ends at 128"),
        (raw_file([entry(), entry(offset=128)]), "is there twice"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(content, message, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        GGUFFile(str(path))
    assert str(path) in str(error.value)


def test_every_truncation_is_refused_and_the_whole_is_not(tmp_path):
    whole = raw_file([entry()], [pair("k", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yz"))], data=bytes(128))
    path = tmp_path / "m.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            GGUFFile(str(path))
    path.write_bytes(whole)
    assert GGUFFile(str(path)).metadata == {"k": ["x", "yz"]}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(hostile, data):
    whole, path = hostile
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, len(whole) - 1024))
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        source = open_source(str(path))
        for name, tensor in source.tensors.items():
            (plane,) = tensor.stored.planes(tensor.shape, tensor.dtype)
            assert source.planes(name)[plane.role].shape == plane.shape
        assert all(isinstance(document, bytes) for document in source.documents.values())
    except SourceError:
        pass


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "m.gguf"
    sentencepiece(path)
    whole = path.read_bytes()
    return whole, path.with_name("damaged.gguf")


def test_all_of_a_vocabulary_is_read_and_little_of_it_shown(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "strange")
    writer.add_token_list([f"t{i}" for i in range(5000)])
    writer.add_token_scores([0.5] * 5000)
    finish(writer)
    assert GGUFFile(str(tmp_path / "m.gguf")).metadata["tokenizer.ggml.tokens"][4999] == "t4999"
    assert len(describe(str(tmp_path / "m.gguf"))["metadata"]["tokenizer.ggml.tokens"]) == 1000
