"""Columns that llama.cpp moves by less than a block: blocks stay, and the order of the columns is kept beside them."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.errors import SourceError
from aibit_format.file import writer
from aibit_format.formats.gguf.architectures.qwen import QWEN35
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.torch.layers.dequantized import QuantizedLinear
from tests.support.gguf_conversion import IDS, VALUE, convert, model_of, tiled
from tests.support.gguf_models import kind, random_blocks, written

# Rows of one block of 256, in which eight heads are in another order; in what is left, of less than a block of 32.
CHANGES = {"linear_num_value_heads": 8, "linear_value_head_dim": 32}
NARROW = {"linear_num_value_heads": 8, "linear_value_head_dim": 16}
NAME = "model.layers.0.linear_attn.out_proj.weight"
LAYERS = (0, 1, 2)  # of four, the last attends to everything


def blocks_of(scheme, columns=256):
    return {f"blk.{i}.ssm_out.weight": (kind(scheme), random_blocks(scheme, (64, columns), i)) for i in LAYERS}


def values_of(scheme, blocks, config):
    """What transformers' weight is, by gguf-py's decode and the inverse of what llama.cpp does to its columns."""
    values = torch.from_numpy(gguf.quants.dequantize(blocks, kind(scheme)))
    places = tiled(VALUE, dim=1)(torch.arange(values.shape[1])[None].expand(len(values), -1), config)[0]
    found = torch.empty_like(values)
    found[:, places] = values
    assert torch.equal(tiled(VALUE, dim=1)(found, config), values) and not torch.equal(found, values)
    return found.numpy()


@pytest.mark.parametrize("architecture", ["qwen35", "qwen35moe"])
@pytest.mark.parametrize("scheme", ["gguf:q4_k", "gguf:q6_k", "gguf:q2_k", "gguf:iq4_xs", "gguf:q4_0"])
def test_blocks_stay_and_go_back_bit_for_bit(architecture, scheme, tmp_path):
    changes = NARROW if scheme == "gguf:q4_0" else CHANGES
    model = model_of(architecture, **changes)
    blocks = blocks_of(scheme, 8 * changes["linear_value_head_dim"])
    data = convert(model, architecture, tmp_path / "m.gguf", "q8_0", blocks=blocks)
    report = aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    assert next(each.scheme for each in report.tensors if each.name == NAME) == f"{scheme},version=2"
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for i, (_, stored) in enumerate(blocks.values()):
            name = NAME.replace(".0.", f".{i}.")
            assert np.array_equal(file.planes(name)["blocks"], stored)
            assert np.array_equal(file.dequantize(name), values_of(scheme, stored, model.config))
    again = written(tmp_path / "m.aibit", tmp_path / "again.gguf")
    found = {tensor.name: (tensor.type, again.read(tensor).tobytes()) for tensor in again.tensors}
    before = {tensor.name: tensor.type for tensor in GGUFFile(str(tmp_path / "m.gguf")).tensors}
    for name, value in data.items():
        assert found[name] == (before[name], value) or name.endswith("ssm_a"), name


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A model whose ``out_proj`` are in q4_k, as a file of this package, and the model with their values."""
    folder = tmp_path_factory.mktemp("columns")
    model, blocks = model_of("qwen35", **CHANGES), blocks_of("gguf:q4_k")
    convert(model, "qwen35", folder / "m.gguf", blocks=blocks)
    aibit.convert(folder / "m.gguf", folder / "m.aibit", scheme="keep")
    for i, (_, stored) in enumerate(blocks.values()):
        values = torch.from_numpy(values_of("gguf:q4_k", stored, model.config))
        model.get_parameter(NAME.replace(".0.", f".{i}.")).data[:] = values
    return folder / "m.aibit", model.eval()


def test_it_runs_packed_as_the_model_with_its_values_and_is_saved(converted, tmp_path):
    path, model = converted
    loaded = aibit.load_model(path)
    layer = loaded.get_submodule(NAME.removesuffix(".weight"))
    assert isinstance(layer, QuantizedLinear) and layer.scheme.text == "gguf:q4_k,version=2"
    for ids in (torch.tensor([IDS]), torch.arange(64)[None]):
        with torch.no_grad():
            found, wanted = loaded(ids).logits, model(ids).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    loaded.save_pretrained(tmp_path / "saved")
    saved = load_file(next((tmp_path / "saved").glob("*.safetensors")))
    assert np.array_equal(saved[NAME], model.get_parameter(NAME).detach().numpy())


def test_exports_have_the_values_in_the_order_of_the_model(converted, tmp_path):
    path, model = converted
    wanted = model.get_parameter(NAME).detach().numpy()
    aibit.export(path, "safetensors", tmp_path / "values")
    assert np.array_equal(load_file(next((tmp_path / "values").glob("*.safetensors")))[NAME], wanted)
    with pytest.raises(aibit.AibitError, match=r"stored as gguf:q4_k,version=2.*--to gguf to write it as it is"):
        aibit.export(path, "huggingface", tmp_path / "hf")
    aibit.export(path, "huggingface", tmp_path / "hf", dequantize=True)
    assert np.array_equal(load_file(next((tmp_path / "hf").glob("*.safetensors")))[NAME], wanted)


def test_it_is_taken_over_or_encoded_anew(converted, tmp_path):
    """From a file of this package, and with another scheme for the values that the model has."""
    path, model = converted
    aibit.convert(path, tmp_path / "kept.aibit", scheme="keep")
    assert {each.kind for each in aibit.diff(path, tmp_path / "kept.aibit")} <= {"metadata"}
    aibit.convert(path.with_name("m.gguf"), tmp_path / "other.aibit", scheme="keep", tensors={"out_proj": "gguf:q8_0"})
    with aibit.open(tmp_path / "other.aibit") as file:
        wanted = model.get_parameter(NAME).detach().numpy()
        assert file.info(NAME).scheme.text == "gguf:q8_0"
        assert np.abs(file.dequantize(NAME) - wanted).max() <= np.abs(wanted).max() / 100
    with pytest.raises(aibit.AibitError, match="the order of columns comes with a checkpoint"):
        rules = {"q_proj": "gguf:q4_0,version=2"}
        aibit.convert(path.with_name("m.gguf"), tmp_path / "never.aibit", scheme="keep", tensors=rules)


@pytest.fixture(scope="module")
def turned(converted):
    """The same file, with the columns of one weight in the reverse order."""
    path = converted[0].with_name("turned.aibit")
    with aibit.open(converted[0]) as file:
        tensors = {writer.Tensor(info.name, info.shape, info.dtype, info.scheme, info.alias_of, info.transposed):
                   dict(file.planes(info.name)) for info in map(file.info, file)}  # fmt: skip
        planes = next(planes for tensor, planes in tensors.items() if tensor.name == NAME)
        planes["column_order"] = planes["column_order"][::-1].copy()
        writer.write(path, tensors, file.metadata, {name: bytes(data) for name, data in file.documents.items()})
    return path


def test_inspect_names_the_version_and_diff_what_another_order_changes(converted, turned, capsys):
    path, _ = converted
    assert main(["inspect", str(path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    assert rows[NAME]["scheme"] == "gguf:q4_k,version=2" and rows[NAME]["bytes"] == 64 * 144 + 4 * 256
    assert main(["diff", str(path), str(path)]) == 0
    found = [each for each in aibit.diff(path, turned) if each.name == NAME]
    assert [each.kind for each in found] == ["planes", "values"] and found[0].a == ["column_order"]


def test_blocks_in_another_order_are_decoded_for_gguf(converted, turned, tmp_path):
    """What is written has the values, in the order that llama.cpp wants."""
    values, model = converted[1].get_parameter(NAME).detach().flip(1), converted[1]
    again = written(turned, tmp_path / "again.gguf")
    found = {tensor.name: tensor for tensor in again.tensors}
    assert [found[f"blk.{i}.ssm_out.weight"].type for i in LAYERS] == ["f16", "q4_k", "q4_k"]
    wanted = tiled(VALUE, dim=1)(values, model.config).half().numpy()
    assert np.array_equal(again.read(found["blk.0.ssm_out.weight"]).view("<f2").reshape(64, 256), wanted)


def test_heads_of_whole_blocks_move_as_before(tmp_path):
    """An order is stored where blocks cannot move, and nowhere else."""
    changes = {"linear_num_value_heads": 4, "linear_value_head_dim": 32}
    data = convert(model_of("qwen35", **changes), "qwen35", tmp_path / "m.gguf", "q8_0")
    aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert {file.info(name).scheme.version for name in file} == {1}
        assert file.planes(NAME)["blocks"].tobytes() != data["blk.0.ssm_out.weight"]


def test_the_operation_says_which_column_is_which():
    (row,) = (row for row in QWEN35.rows if row.parts == ("blk.{}.ssm_out.weight",))
    config = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_value_head_dim": 3}
    values = np.arange(24).reshape(2, 12)
    order = row.operation.column_order(12, config)
    assert order.tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    assert np.array_equal(row.operation.to_hugging_face([values], config), values[:, order])
    assert np.array_equal(row.operation.to_gguf(values[:, order], config)[0], values)
    with pytest.raises(SourceError):
        row.operation.column_order(12, config | {"linear_num_value_heads": 5})
