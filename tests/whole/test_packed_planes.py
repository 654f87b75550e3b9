"""Tensors of elements of less than a byte, through everything that handles tensors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.dtypes import DTYPES, to_float32
from aibit_format.errors import FormatError, SchemeError, SourceError, WriteError
from aibit_format.file import slice_rows
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, Writer, plan, write
from aibit_format.formats.safetensors.reader import SafetensorsFile
from aibit_format.schemes import make
from aibit_format.schemes.packing import pack_plane, unpack_plane
from tools.fixtures import file_builder, mutators
from tools.fixtures.bad_recipes import NEWER

PACKED = [name for name, dtype in DTYPES.items() if dtype.is_packed]
by_dtype = pytest.mark.parametrize("dtype", PACKED)


def codes(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 1 << DTYPES[dtype].bits, shape, np.uint8)


def written(path, dtype: str, *shape: int) -> np.ndarray:
    """Write a file of one tensor ``w``; returns its codes."""
    found = np.asarray(codes(dtype, *shape))
    write(path, {Tensor("w", shape, dtype, make(dtype)): make(dtype).encode(found, dtype)}, overwrite=True)
    return found


@by_dtype
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5), (0, 5), (3, 0), (9,)])
def test_it_is_read_as_it_was_written_and_listed_with_its_shape(dtype, shape, tmp_path, capsys):
    found = written(tmp_path / "m.aibit", dtype, *shape)
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        (plane,) = file.info("w").planes
        assert (plane.shape, plane.length) == (shape, DTYPES[dtype].nbytes(shape))
        stored = file.planes("w")["values"]
        assert (stored.dtype, stored.shape) == (np.uint8, DTYPES[dtype].stored(shape))
        assert np.array_equal(unpack_plane(stored, dtype, shape), found)
        assert np.array_equal(file.dequantize("w"), to_float32(found, dtype))
    assert main(["inspect", str(tmp_path / "m.aibit"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tensors"]
    assert (row["shape"], row["scheme"], row["bytes"]) == (list(shape), dtype, plane.length)


@by_dtype
def test_it_is_written_by_rows_to_the_same_bytes(dtype, tmp_path):
    """A chunk of the file may end inside a row, which is then passed twice."""
    shape = ((5 << 20) * 8 // (1000 * DTYPES[dtype].bits), 1000)
    found = codes(dtype, *shape)
    scheme, tensor = make(dtype), Tensor("w", shape, dtype, make(dtype))
    write(tmp_path / "whole.aibit", {tensor: scheme.encode(found, dtype)})
    with Writer(tmp_path / "rows.aibit", plan([tensor], {}, {})) as out:
        chunks = out.chunks("w")
        width = DTYPES[dtype].nbytes((1000,))
        for chunk in reversed(chunks):
            rows = range(chunk.start // width, -(-chunk.stop // width))
            out.write_rows("w", rows, scheme.encode(found[rows.start : rows.stop], dtype), chunk)
        out.commit()
    assert len(chunks) > 1
    assert (tmp_path / "whole.aibit").read_bytes() == (tmp_path / "rows.aibit").read_bytes()


@by_dtype
def test_its_rows_are_cut_for_several_devices(dtype, tmp_path):
    found = written(tmp_path / "m.aibit", dtype, 6, 5)
    with aibit.open(tmp_path / "m.aibit", verify="touched") as file:
        info = file.info("w")
        for count in (2, 3, 6):
            assert not slice_rows.obstacle(info, count)
            rows = slice(6 // count, 2 * 6 // count)
            part, planes = slice_rows.slice_rows(file, info, rows)
            decoded = part.scheme.decode(planes, part.shape, dtype)
            assert np.array_equal(decoded, to_float32(found[rows], dtype))
    vector = written(tmp_path / "v.aibit", dtype, 48)
    with aibit.open(tmp_path / "v.aibit") as file:
        info = file.info("w")
        part, planes = slice_rows.slice_rows(file, info, slice(16, 24))
        assert np.array_equal(part.scheme.decode(planes, (8,), dtype), to_float32(vector[16:24], dtype))
        assert "whole blocks" in slice_rows.obstacle(info, 48)


def test_planes_of_another_shape_or_with_bits_after_a_row_are_not_written(tmp_path):
    tensor = Tensor("w", (2, 3), "u4", make("u4"))
    for bad, error in (
        (np.zeros((2, 3), np.uint8), WriteError), (np.zeros(3, np.uint8), WriteError),
        (np.zeros((2, 2), np.int8), WriteError), (np.full((2, 2), 0x10, np.uint8), SchemeError),
    ):  # fmt: skip
        with pytest.raises(error, match=r"planned u4\[2, 3\], packed as uint8\[2, 2\]|after the last u4"):
            write(tmp_path / "m.aibit", {tensor: {"values": bad}})
    assert list(tmp_path.iterdir()) == []


def test_it_is_cut_joined_edited_and_compared(tmp_path):
    path = aibit_copy = tmp_path / "m.aibit"
    tensors = {}
    for dtype in PACKED:
        tensors[Tensor(dtype, (3, 7), dtype, make(dtype))] = make(dtype).encode(codes(dtype, 3, 7), dtype)
    write(path, tensors)
    first = aibit.split(path, tmp_path / "s.aibit", 20)[0]
    aibit.merge(first, tmp_path / "whole.aibit")
    aibit.edit(aibit_copy, tmp_path / "edited.aibit", metadata={"a.b": 1})
    assert aibit.diff(path, tmp_path / "whole.aibit") == []
    assert [found.kind for found in aibit.diff(path, tmp_path / "edited.aibit")] == ["metadata"]
    aibit.convert(path, tmp_path / "again.aibit")
    assert aibit.diff(path, tmp_path / "again.aibit")[0].kind == "metadata"  # model.missing
    assert not [found for found in aibit.diff(path, tmp_path / "again.aibit") if found.name in PACKED]
    changed = File(path.read_bytes()).info("u4").planes[0].offset
    (tmp_path / "other.aibit").write_bytes(file_builder.flip(changed, leaves=True, seal=True)(path.read_bytes()))
    found = aibit.diff(path, tmp_path / "other.aibit")
    assert [(each.kind, each.name) for each in found] == [("planes", "u4"), ("values", "u4")]


def test_floats_take_another_scheme(tmp_path):
    found = written(tmp_path / "m.aibit", "f6_e3m2", 4, 64)
    values = to_float32(found, "f6_e3m2")
    for scheme, dtype in (("f16", "f16"), ("f32", "f32")):
        aibit.convert(tmp_path / "m.aibit", tmp_path / "n.aibit", tensors={"w": scheme}, overwrite=True)
        with aibit.open(tmp_path / "n.aibit", verify="full") as file:
            assert file.info("w").dtype == dtype and np.array_equal(file.dequantize("w"), values)
    aibit.convert(tmp_path / "n.aibit", tmp_path / "back.aibit", tensors={"w": "f6_e3m2"})
    with aibit.open(tmp_path / "back.aibit", verify="full") as file:
        assert np.array_equal(unpack_plane(file.planes("w")["values"], "f6_e3m2", (4, 64)), found)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("f4_e2m1", (2, 4)), ("f4_e2m1", (2, 3)), ("f6_e2m3", (2, 2)), ("f6_e3m2", (4, 3))]
)
def test_it_is_exported_to_safetensors_and_comes_back(dtype, shape, tmp_path):
    found = written(tmp_path / "m.aibit", dtype, *shape)
    aibit.export(tmp_path / "m.aibit", "safetensors", tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["w"] == {"dtype": "F4" if dtype == "f4_e2m1" else dtype.upper(), "shape": list(shape),
                           "data_offsets": [0, found.size * DTYPES[dtype].bits // 8]}  # fmt: skip
    assert data[-header["w"]["data_offsets"][1] :] == pack_plane(found.reshape(-1), dtype).tobytes()
    back = SafetensorsFile(str(tmp_path / "out" / "model.safetensors"))
    assert np.array_equal(unpack_plane(back.read("w"), dtype, shape), found) and back.tensors["w"].dtype == dtype


def test_what_safetensors_has_no_dtype_for_is_not_exported(tmp_path):
    written(tmp_path / "m.aibit", "u4", 2, 4)
    with pytest.raises(WriteError, match="tensor 'w': safetensors has no dtype for u4"):
        aibit.export(tmp_path / "m.aibit", "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_transposed_tensor_is_exported_as_the_architecture_has_it(tmp_path):
    found = codes("f4_e2m1", 3, 4)
    tensor = Tensor("w", (3, 4), "f4_e2m1", make("f4_e2m1"), transposed=True)
    write(tmp_path / "m.aibit", {tensor: make("f4_e2m1").encode(found, "f4_e2m1")})
    aibit.export(tmp_path / "m.aibit", "safetensors", tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert data[-6:] == pack_plane(found.T.reshape(-1), "f4_e2m1").tobytes()


def test_a_model_with_such_tensors_computes_with_their_values(fixtures, tmp_path):
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit", scheme="int8",
                  tensors={"norm.weight$": "f6_e3m2", "down_proj": "f4_e2m1"})  # fmt: skip
    aibit.convert(tmp_path / "m.aibit", tmp_path / "kept.aibit")
    for path in (tmp_path / "m.aibit", tmp_path / "kept.aibit"):
        with aibit.open(path) as file:
            model = aibit.load_model(file)
            small = [name for name in file if DTYPES[file.info(name).dtype].is_packed]
            assert len(small) > 4
            for name in small:
                assert np.array_equal(model.get_parameter(name).float().numpy(), file.dequantize(name)), name
            model(torch.tensor([[1, 2, 3]]))


def test_integers_are_not_taken_for_weights(fixtures, tmp_path):
    """Codes of a checkpoint say nothing of their scales."""
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit", scheme="keep")
    with aibit.open(tmp_path / "m.aibit") as file:
        texts = {name: bytes(text) for name, text in file.documents.items()}
        tensors = {}
        for name in file:
            info = file.info(name)
            dtype = "u4" if name.endswith("q_proj.weight") else info.dtype
            values = np.zeros(info.shape, np.uint8) if dtype == "u4" else file.planes(name)["values"]
            tensors[Tensor(name, info.shape, dtype, make(dtype), info.alias_of)] = (
                {} if info.alias_of else make(dtype).encode(values, dtype)
            )
        metadata = {key: file.metadata[key] for key in ("model.architecture", "model.type", "model.dtype")}
        write(tmp_path / "codes.aibit", tensors, metadata, texts)
    with pytest.raises(SourceError, match="is u4, LlamaForCausalLM wants"):
        aibit.convert(tmp_path / "codes.aibit", tmp_path / "n.aibit", scheme="int8")


def test_a_checkpoint_of_torch_with_four_bit_floats_is_converted(fixtures, tmp_path):
    shutil.copytree(fixtures / "models" / "tiny-llama", tmp_path / "in")
    shards = [(path, safetensors.torch.load_file(path)) for path in (tmp_path / "in").glob("*.safetensors")]
    path, weights, name = next((p, w, n) for p, w in shards for n in w if n.endswith("q_proj.weight"))
    rows, columns = weights[name].shape
    pairs = (torch.arange(rows * columns // 2) * 7 % 256).to(torch.uint8).reshape(rows, columns // 2)
    safetensors.torch.save_file(weights | {name: pairs.view(torch.float4_e2m1fn_x2)}, path, {"format": "pt"})
    for scheme, dtype in (("keep", "f4_e2m1"), ("f32", "f32")):
        aibit.convert(tmp_path / "in", tmp_path / "m.aibit", scheme=scheme, overwrite=True)
        with aibit.open(tmp_path / "m.aibit", verify="full") as file:
            assert (file.info(name).shape, file.info(name).dtype) == ((rows, columns), dtype)
            wanted = to_float32(unpack_plane(pairs.numpy(), "f4_e2m1", (rows, columns)), "f4_e2m1")
            assert np.array_equal(file.dequantize(name), wanted)


def test_an_unknown_tensor_of_them_has_one_row_of_what_its_bytes_hold():
    with File(NEWER(mutators.packed("u3", 2, 5)), "full") as file:
        (plane,) = file.info("w").planes
        assert (plane.dtype, plane.shape, plane.length) == ("u3", (10,), 4)
        assert file.planes("w")["values"].shape == (4,)
        with pytest.raises(FormatError, match="unknown here"):
            file.dequantize("w")


def test_spare_bits_are_found_by_full_verification_alone(tmp_path):
    data = mutators.altered(mutators.packed("u4", 3, 3), values={1: 0x1F})
    with File(data) as file:
        assert file.dequantize("w").tolist() == [[15] * 3] * 3
        with pytest.raises(FormatError, match=r"'w' plane 'values'.*after the last u4 of a row.*AIB-E503"):
            file.verify()
