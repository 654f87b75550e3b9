"""Which tensors and documents are exported, and as what."""

import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import aibit_format as aibit
from aibit_format.container import documents
from aibit_format.errors import SchemeError, WriteError
from aibit_format.file import writer
from aibit_format.formats.exports import export
from aibit_format.schemes import make
from tests.support.exported_models import config_of, convert, load, small
from tests.support.exported_models import originals as originals


@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_another_dtype_is_that_of_every_tensor_and_of_the_config(dtype, name, originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8")
    export(file, "safetensors", tmp_path / "out", dtype=dtype)
    assert config_of(tmp_path / "out")["dtype"] == name
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {getattr(torch, name)}
    for key, value in written.items():
        assert torch.equal(value, torch.from_numpy(file.dequantize(key)).to(value.dtype)), key
    assert next(load("untied", tmp_path / "out").parameters()).dtype == getattr(torch, name)


def test_values_too_large_are_refused_by_name_and_nothing_is_left(tmp_path):
    file = small(tmp_path / "m.aibit", {"fine": np.ones(3, np.float32), "large": np.float32([1, 70000])})
    with pytest.raises(SchemeError, match=r"'large'.*too large for f16: largest magnitude 70000"):
        export(file, "safetensors", tmp_path / "out", dtype="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["m.aibit"]
    with pytest.raises(ValueError, match="f8_e4m3"):
        export(file, "safetensors", tmp_path / "out", dtype="f8_e4m3")


@pytest.mark.parametrize(("tie", "names"), [(False, {"a", "b"}), (True, {"a"}), (None, {"a"})])
def test_an_alias_is_left_to_the_config_unless_that_unties_it(tie, names, tmp_path):
    config = {} if tie is None else {"tie_word_embeddings": tie}
    tensors = {
        writer.Tensor("a", (2, 3), "f32", make("int8")): make("int8").encode(np.eye(2, 3, dtype=np.float32), "f32"),
        writer.Tensor("b", (2, 3), "f32", make("int8"), alias_of="a"): {},
    }
    writer.write(tmp_path / "m.aibit", tensors, None, {"config.json": json.dumps(config).encode()})
    export(aibit.open(tmp_path / "m.aibit"), "safetensors", tmp_path / "out")
    assert safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors").keys() == names


def test_documents_are_written_as_they_are_with_a_card_if_there_is_none(tmp_path):
    documents = {"config.json": b'{ "model_type":"x" }', "additional_chat_templates/a.jinja": b"{{ a }}"}
    metadata = {"model.architecture": "X`\n# Y", "quantization.recipe": ["*=int8", "a=b"]}
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, documents, metadata)
    paths = export(file, "safetensors", tmp_path / "a")
    assert str(tmp_path / "a" / "additional_chat_templates" / "a.jinja") in paths
    for name, text in documents.items():
        assert (tmp_path / "a" / name).read_bytes() == text
    card = (tmp_path / "a" / "README.md").read_text()
    assert "- Architecture: `X# Y`\n" in card and "`*=int8`, `a=b`" in card and file.root in card
    file = small(tmp_path / "n.aibit", {"a": np.ones(2, np.float32)}, {"README.md": b"theirs"})
    export(file, "safetensors", tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_bytes() == b"theirs"


@pytest.mark.parametrize(("text", "error"), [(b"[1]", "no JSON object"), (b'{"runs_code": 1}', "runs_code")])
def test_a_config_that_nobody_should_load_is_not_passed_on(text, error, tmp_path, monkeypatch):
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, {"config.json": text})
    monkeypatch.setitem(documents.FORBIDDEN_IN, "config.json", frozenset({"runs_code"}))
    for to in ("huggingface", "safetensors"):
        with pytest.raises(aibit.AibitError, match=error):
            export(file, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.safetensors", "model.safetensors.index.json"])
def test_a_document_cannot_take_the_place_of_the_weights(name, tmp_path):
    file = small(tmp_path / "m.aibit", {"a": np.ones(2, np.float32)}, {name: b"{}"})
    with pytest.raises(WriteError, match="name of a file of weights"):
        export(file, "safetensors", tmp_path / "out")
