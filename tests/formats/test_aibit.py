"""A file of ours as a source."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.convert.convert import convert
from aibit_format.file import writer
from aibit_format.formats.sources import open_source
from tests.support.saved_models import QUANTIZED, Q, refused, same_files
from tests.support.saved_models import folder as folder
from tests.support.saved_models import saved as saved


@pytest.mark.parametrize("key", QUANTIZED)
def test_an_aibit_file_converts_to_itself(key, saved, tmp_path):
    convert(saved / key, tmp_path / "a.aibit")
    convert(tmp_path / "a.aibit", tmp_path / "b.zip")  # what a file is, its content says
    same_files(tmp_path / "a.aibit", tmp_path / "b.zip")
    with aibit.open(tmp_path / "a.aibit") as a, aibit.open(tmp_path / "b.zip") as b:
        assert {name: bytes(text) for name, text in a.documents.items()} == {
            name: bytes(text) for name, text in b.documents.items()
        }
        assert [a.info(name).alias_of for name in a] == [b.info(name).alias_of for name in b]
        assert b.metadata["source.kind"] == "aibit" and list(b.metadata["source.files"]) == ["a.aibit"]


def test_an_aibit_file_takes_another_recipe(saved, tmp_path):
    convert(saved / "gpt2", tmp_path / "plain.aibit", scheme="keep")
    convert(tmp_path / "plain.aibit", tmp_path / "int8.aibit", scheme="int8")
    convert(saved / "gpt2", tmp_path / "straight.aibit", scheme="int8")
    same_files(tmp_path / "straight.aibit", tmp_path / "int8.aibit")
    convert(tmp_path / "int8.aibit", tmp_path / "back.aibit", scheme="f32")
    name = "transformer.h.0.attn.c_attn.weight"
    with aibit.open(tmp_path / "int8.aibit") as file, aibit.open(tmp_path / "back.aibit") as back:
        assert file.info(name).transposed and not back.info(name).transposed
        assert np.array_equal(back.planes(name)["values"], file.dequantize(name).T)


def test_the_architecture_of_an_aibit_file_is_kept(saved, tmp_path):
    shutil.copytree(saved / "llama-tied", tmp_path / "hf")
    said = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"architectures": []}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(said))
    convert(tmp_path / "hf", tmp_path / "a.aibit", architecture="LlamaForCausalLM")
    convert(tmp_path / "a.aibit", tmp_path / "b.aibit", scheme="keep")
    with aibit.open(tmp_path / "b.aibit") as file:
        assert file.metadata["model.architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "name", ["dtypes", "packed-dtypes", "experts", "transposed", "alias", "shapes", "extra-section"]
)
def test_an_aibit_file_without_a_model_converts_too(name, fixtures, tmp_path):
    path = fixtures / "container" / f"{name}.aibit"
    source = open_source(path)
    assert source.no_model and source.architecture is None
    convert(path, tmp_path / "m.aibit")
    same_files(path, tmp_path / "m.aibit")


def test_a_damaged_aibit_file_leaves_none_behind(saved, tmp_path):
    convert(saved / "llama-8bit", tmp_path / "a.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        offset = file.info(f"{Q}.weight").planes[1].offset
    content = bytearray((tmp_path / "a.aibit").read_bytes())
    content[offset] ^= 1
    (tmp_path / "a.aibit").write_bytes(content)
    assert refused(tmp_path / "a.aibit", tmp_path, "leaf digest").code == "AIB-E602"
    (tmp_path / "a.aibit").write_bytes(content[:-1])
    refused(tmp_path / "a.aibit", tmp_path, "a.aibit: ")


def test_tensors_without_a_model_keep_aliases_and_transposes_when_converted_again(tmp_path):
    scheme = schemes.make("int8")
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    tensors = {
        writer.Tensor("a", (6, 4), "f32", scheme, transposed=True): scheme.encode(values, "f32"),
        writer.Tensor("b", (6, 4), "f32", scheme, "a", transposed=True): {},
    }
    writer.write(tmp_path / "a.aibit", tensors)
    for rules, expected in (({}, True), ({"^a$": "f32"}, False), ({"^a$": "int8-zp"}, False)):
        aibit.convert(tmp_path / "a.aibit", tmp_path / "b.aibit", tensors=rules, overwrite=True)
        with aibit.open(tmp_path / "b.aibit", verify="full") as file:
            assert file.info("b").alias_of == "a" and file.info("a").transposed == (rules != {"^a$": "f32"})
            found = file.dequantize("a") if file.info("a").transposed else file.dequantize("a").T
            assert np.array_equal(found, scheme.decode(scheme.encode(values, "f32"), (6, 4), "f32")) or not expected
            assert np.abs(found - values).max() < 0.05
            with pytest.raises(aibit.AibitError, match="no model"):
                aibit.load_model(file)
